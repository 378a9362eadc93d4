"""The proxy over TLS: what differs from TCP is how a connection ends, and what waits to be sent."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from memoria.config.model import Limits
from tests.certificates import trusting
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, answer_ok, on_uvloop, request, until

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nhost: t\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n"
)


def trustless(version: bytes, rig: Rig) -> tuple[bytes, BaseException | None]:
    """A blocking client that knows a connection's end from a cut one: all that came, and how it ended."""
    with socket.create_connection((rig.host, rig.port), timeout=20) as plain:
        assert rig.tls is not None
        with rig.tls.wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False
        ) as connection:
            body = request(b"/v1/completions", b"{}").replace(b"HTTP/1.1", b"HTTP/" + version)
            connection.sendall(body)
            came = b""
            try:
                while piece := connection.recv(65536):
                    came += piece
            except OSError as error:
                return came, error
            return came, None


@on_uvloop
async def test_requests_and_answers_pass_one_after_the_other(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, tls=True, generation=engine) as rig:
        client = await rig.client()
        for size in (2, 100_000, 5_000_000):
            await client.post(b"/v1/completions", b"x" * size)
            assert (await client.response()).body == b'{"ok":true}'
            assert len(engine.asked[-1].body) == size
        assert engine.connections <= 3


@on_uvloop
async def test_a_large_answer_reaches_a_slow_reader_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 65536  # 16 MiB

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with Rig(tmp_path, tls=True, generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.post(b"/v1/completions", b"{}", b"connection: close")
        await until(lambda: any(c.flow.write_paused for c in rig.connections))
        (connection,) = rig.connections
        assert connection.transport.get_write_buffer_size() < 2**19  # not half a MiB, as uvloop would
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.response()).body == body
        assert await client.closed() == b""


@on_uvloop
async def test_a_reader_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % 2**28)
        while not asked.gone.is_set():
            await asked.send(bytes(2**18))

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, tls=True, client_idle=0.3, embedding=engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.post(b"/v1/embeddings", b"{}")
        record = await rig.ended.get()
        assert record.complete is False
        await until(lambda: not rig.connections)


@on_uvloop
async def test_a_refusal_is_read_by_a_client_that_still_sends(tmp_path: Path) -> None:
    async with Rig(tmp_path, tls=True, limits=Limits(1000), generation=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            await client.send(b"1000\r\n" + bytes(0x1000) + b"\r\n")
        response = await client.response()
        assert (response.status, response.error["code"]) == (413, "body_too_large")
        assert response.header(b"connection") == [b"close"]
        assert await client.closed() == b""
        await until(lambda: not rig.connections)


@on_uvloop
async def test_malformed_requests_are_answered_and_the_connection_ends(tmp_path: Path) -> None:
    async with Rig(tmp_path, tls=True, generation=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(b"NONSENSE\r\n\r\n")
        assert (await client.response()).status == 400
        assert await client.closed() == b""
        await until(lambda: not rig.connections)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@on_uvloop
async def test_a_cut_answer_does_not_end_like_a_complete_one(tmp_path: Path, version: bytes) -> None:
    """HTTP/1.0 has no frames: there the answer's end is TLS's own (close_notify), which must not come."""
    dies = False

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        if dies:
            asked.writer.transport.abort()
        else:
            await asked.send(b"0\r\n\r\n")

    async with Rig(tmp_path, tls=True, generation=ScriptedEngine(script)) as rig:
        came, error = (
            await asyncio.to_thread(trustless, version, rig) if version == b"1.0" else (b"hello", None)
        )
        assert came.endswith(b"hello")
        assert error is None
        dies = True
        came, error = await asyncio.to_thread(trustless, version, rig)
        assert b"0\r\n\r\n" not in came
        assert (error is not None) == (version == b"1.0")
        await until(lambda: not rig.connections)


@on_uvloop
async def test_a_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.gone.wait()

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, tls=True, generation=engine) as rig:
        # a second request behind the first: nothing is read from the client meanwhile
        for leave, times in (("close", 1), ("abort", 1), ("abort", 2)):
            client = await rig.client()
            await client.send(request(b"/v1/completions", b"{}") * times)
            asked = await engine.arrivals.get()
            getattr(client.writer.transport, leave)()
            await asked.gone.wait()
        await until(lambda: not rig.connections)


@on_uvloop
async def test_a_client_that_does_not_say_goodbye_holds_no_connection(tmp_path: Path) -> None:
    async with Rig(tmp_path, tls=True, client_idle=0.4, generation=ScriptedEngine()) as rig:
        assert rig.tls is not None
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = rig.tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await asyncio.open_connection(rig.host, rig.port)
        while True:
            try:
                end.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        end.write(request(b"/v1/completions", b"{}", b"connection: close"))
        writer.write(outgoing.read())
        assert await reader.read()  # until the proxy has closed; nothing was sent in return
        await until(lambda: not rig.connections)
        writer.close()


@on_uvloop
async def test_a_websocket_is_opened_and_bytes_pass_both_ways(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.send(SWITCH)
        while piece := await asked.reader.read(65536):
            await asked.send(piece[::-1])

    async with Rig(tmp_path, tls=True, generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        await client.send(HANDSHAKE)
        assert (await client.head()).status == 101
        await client.send(b"abc")
        assert await client.reader.readexactly(3) == b"cba"


@on_uvloop
async def test_what_is_not_tls_is_closed_and_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig(tmp_path, tls=True, generation=ScriptedEngine(answer_ok)) as rig:
        for first in (
            request(b"/v1/completions", b"{}"),
            bytes(1000),
            b"\x16\x03\x01\x02\x00\x01" + b"x" * 600,
        ):
            reader, writer = await asyncio.open_connection(rig.host, rig.port)
            writer.write(first)
            writer.write_eof()
            assert b"HTTP" not in await reader.read()
            writer.close()
        foreign = trusting("renewed")
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(rig.host, rig.port, ssl=foreign)
        assert (await rig.post(b"/v1/completions")).status == 200
        assert not caplog.records
