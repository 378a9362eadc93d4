"""An engine closes a kept connection while the next request is on its way: never seen by the client where the
engine cannot have read the request, never asked twice where it can.

The engine is a bare socket, since it is the kernel that tells one from the other.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from memoria.config.model import Runner
from memoria.proxy.router import Candidate
from memoria.vllm.facts import EngineAddress, TcpAddress, UnixAddress
from tests.integration.proxy_rig import JSON_OK, Client, FakeRouter, Rig, ScriptedEngine, on_uvloop, request

CHAT = b"/v1/chat/completions"
QUESTION = request(CHAT, b'{"n":1}')


class BareEngine(ScriptedEngine):
    """Reads and closes when the test does."""

    async def listen(self, where: Path | None) -> EngineAddress:
        self._open: list[socket.socket] = []
        if where is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(where))
        else:
            self._listener = socket.socket()
            self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self._listener.setblocking(False)
        if where is not None:
            return UnixAddress(str(where))
        return TcpAddress("127.0.0.1", self._listener.getsockname()[1])

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        connection.setblocking(False)
        self._open.append(connection)
        return connection

    async def read(self, connection: socket.socket) -> bytes:
        """One request with a body."""
        data = b""
        while not data.endswith(b"}"):
            data += await asyncio.get_running_loop().sock_recv(connection, 65536)
        return data

    async def close(self) -> None:
        for connection in (*self._open, self._listener):
            connection.close()


async def kept(rig: Rig, engine: BareEngine) -> tuple[Client, socket.socket]:
    """A client, and the engine's end of the connection that served it and was kept."""
    client = await rig.client()
    await client.send(QUESTION)
    connection = await engine.accept()
    await engine.read(connection)
    connection.send(JSON_OK)
    assert (await client.response()).status == 200
    return client, connection


async def is_answered_anew(rig: Rig, engine: BareEngine, client: Client) -> None:
    connection = await engine.accept()
    assert (await engine.read(connection)).endswith(b'{"n":1}')
    connection.send(JSON_OK)
    assert (await client.response()).status == 200
    assert rig.exchanges[-1].replays == 1


both = pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])


@both
@on_uvloop
async def test_it_closes_in_the_moment_that_the_client_asks(tmp_path: Path, tcp: bool) -> None:
    """memoria learns of both at once, of the client first."""
    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client, connection = await kept(rig, engine)
        with client.writer.get_extra_info("socket").dup() as bare:
            bare.send(QUESTION)
        connection.close()
        await is_answered_anew(rig, engine, client)


@both
@on_uvloop
async def test_it_closes_just_before_the_client_asks(tmp_path: Path, tcp: bool) -> None:
    """memoria learns of both at once, of the engine first: the loop has yet to tell that the connection is
    lost. Nothing has to be asked again."""
    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client, connection = await kept(rig, engine)
        connection.close()
        with client.writer.get_extra_info("socket").dup() as bare:
            bare.send(QUESTION)
        connection = await engine.accept()
        assert (await engine.read(connection)).endswith(b'{"n":1}')
        connection.send(JSON_OK)
        assert (await client.response()).status == 200
        assert rig.exchanges[-1].replays == 0


@both
@on_uvloop
async def test_it_closes_before_the_request_is_written(tmp_path: Path, tcp: bool) -> None:
    """Its end is in the kernel, but not in memoria yet."""

    class Router(FakeRouter):
        closing: socket.socket | None = None

        def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
            if self.closing is not None:
                self.closing.close()
            return super().candidates(runner, port)

    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        router = Router(rig.router.engines)
        rig.context.router = router
        client, router.closing = await kept(rig, engine)
        await client.send(QUESTION)
        await is_answered_anew(rig, engine, client)


@both
@on_uvloop
async def test_it_closes_with_the_request_unread(tmp_path: Path, tcp: bool) -> None:
    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client, connection = await kept(rig, engine)
        await client.send(QUESTION)
        assert await is_readable(connection)
        connection.close()
        await is_answered_anew(rig, engine, client)


@both
@on_uvloop
async def test_it_closes_with_half_of_the_request_read(tmp_path: Path, tcp: bool) -> None:
    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client, connection = await kept(rig, engine)
        await client.send(QUESTION)
        assert len(await asyncio.get_running_loop().sock_recv(connection, 50)) == 50
        connection.close()
        await is_answered_anew(rig, engine, client)


@both
@on_uvloop
async def test_it_closes_with_the_request_read(tmp_path: Path, tcp: bool) -> None:
    """It may have begun: whoever asked decides."""
    engine = BareEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client, connection = await kept(rig, engine)
        await client.send(QUESTION)
        await engine.read(connection)
        connection.close()
        response = await client.response()
        assert (response.status, response.error["code"]) == (502, "engine_lost")
        assert not await is_readable(engine._listener)


@both
@on_uvloop
async def test_what_is_too_large_to_be_asked_again_gets_a_connection_of_its_own(
    tmp_path: Path, tcp: bool
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        assert [(await rig.post(CHAT, b"x" * size)).status for size in (2, 2, 2**20 + 1)] == [200] * 3
    assert [asked.connection for asked in engine.asked] == [1, 1, 2]


async def is_readable(connection: socket.socket) -> bool:
    try:
        async with asyncio.timeout(0.5):
            readable = asyncio.Event()
            asyncio.get_running_loop().add_reader(connection, readable.set)
            await readable.wait()
            return True
    except TimeoutError:
        return False
    finally:
        asyncio.get_running_loop().remove_reader(connection)
