"""What one client sends holds up no other: requests without end, bodies in crumbs, bytes that are no body."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from memoria.aio import LARGE_READS, in_daemon_thread
from memoria.config.model import Limits
from memoria.proxy.access.keys import KeyRing
from memoria.proxy.access.rules import AccessRules
from memoria.proxy.downstream.connection import HEAD_BYTES, Downstream
from memoria.proxy.upstream import LARGE_READ, Upstream
from tests.integration.proxy_rig import (
    JSON_OK,
    Asked,
    Client,
    Rig,
    ScriptedEngine,
    answer_ok,
    on_uvloop,
    request,
    until,
)

PATH, OWN = b"/v1/embeddings", b"/nowhere"
CHUNKED = b"transfer-encoding: chunked"
MIB = 1 << 20


def rules(folder: Path) -> AccessRules:
    file = folder / "keys"
    file.write_text("ana: sk-0123456789abcdef\n")
    file.chmod(0o600)
    return AccessRules(hosts=frozenset((b"test",)), keys=KeyRing(file))


async def flood(client: Client, data: bytes, pieces: int = 1 << 20) -> None:
    """Sends it again and again, until the proxy hangs up."""
    with suppress(ConnectionError):
        for _ in range(pieces):
            await client.send(data)


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """Bytes that Python had allocated at once, at most, when the block ends."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (request(PATH, b"{}"), 401),
        (request(OWN, b"{}"), 401),
        (request(PATH, b"{}", b"x-api-key: sk-0123456789abcdef"), 200),
        (request(OWN, method=b"GET") + b"\r\n" * 40, 401),
    ],
    ids=["refused", "memoria's own, refused", "served", "with empty lines"],
)
@on_uvloop
async def test_requests_without_end_are_read_one_by_one(tmp_path: Path, wire: bytes, status: int) -> None:
    """Those behind the first are not even parsed before it is answered, and others have their turns."""
    async with Rig(tmp_path, rules=rules(tmp_path), embedding=ScriptedEngine()) as rig:
        hostile = [await rig.client() for _ in range(4)]
        for client in hostile:
            client.writer.write(wire * 5000)
        other = await rig.client()
        key = b"x-api-key: sk-0123456789abcdef"
        for _ in range(10):
            before = len(rig.exchanges)
            await other.post(PATH, b"{}", key)
            assert (await other.response()).status == 200
            assert len(rig.exchanges) - before < 500
        in_order = [(await hostile[0].response()).status for _ in range(50)]
        assert in_order == [status] * 50


@on_uvloop
async def test_requests_behind_one_that_is_not_answered_are_not_read(tmp_path: Path) -> None:
    async def never(asked: Asked) -> None:
        await asked.gone.wait()

    engine = ScriptedEngine(never)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(request(PATH, b"{}") * 1000)
        await engine.arrivals.get()
        (connection,) = rig.connections
        await until(lambda: connection.flow.read_paused)
        with most_memory() as found:
            for _ in range(20):
                await asyncio.sleep(0.01)
        assert found[0] < MIB
        assert len(rig.exchanges) == 0
        client.reset()
        await rig.ended.get()


@pytest.mark.parametrize("path", [PATH, OWN], ids=["an engine's route", "memoria's own"])
@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"2\r\n{}\r\n0\r\nx: ", b"y" * 4096),
        (b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * 700),
        (b"2;x=", b"y" * 4096),
        (b"2", b"0" * 4096),
    ],
    ids=["a trailer", "trailers", "a chunk's extension", "a chunk's size"],
)
@on_uvloop
async def test_bytes_without_end_that_are_no_body_are_refused(
    tmp_path: Path, path: bytes, begin: bytes, more: bytes
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(request(path, b"", CHUNKED) + begin)
        sending = asyncio.create_task(flood(client, more))
        response = await client.response()
        assert response.status in {400, 404, 431}
        assert response.header(b"connection") == [b"close"] or path == OWN
        assert await client.closed() == b""
        await sending
    assert not engine.asked


@on_uvloop
async def test_a_trailer_behind_an_upload_that_has_begun_takes_it_back(tmp_path: Path) -> None:
    async def read_all(asked: Asked) -> None:
        while await asked.reader.read(65536):
            pass

    engine = ScriptedEngine(read_all)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(request(PATH, b"", CHUNKED) + b"40000\r\n%b\r\n0\r\n" % bytes(0x40000))
        asked = await engine.arrivals.get()
        sending = asyncio.create_task(flood(client, b"x: y\r\n" * 700))
        response = await client.response()
        assert (response.status, response.error["code"]) == (431, "trailer_too_large")
        await asked.gone.wait()
        await sending


@on_uvloop
async def test_empty_lines_without_end_are_refused(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        sending = asyncio.create_task(flood(client, b"\r\n" * 2048))
        assert (await client.response()).status == 431
        assert await client.closed() == b""
        await sending


@pytest.mark.parametrize("size", [1, 100, HEAD_BYTES // 2])
@on_uvloop
async def test_a_trailer_of_any_lawful_size_is_read(tmp_path: Path, size: int) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.send(request(PATH, b"", CHUNKED) + b"2\r\n{}\r\n0\r\nx: %b\r\n\r\n" % (b"y" * size))
            assert (await client.response()).status == 200
    assert [asked.body for asked in engine.asked] == [b"{}", b"{}"]


@pytest.mark.parametrize("apart", [False, True], ids=["in large reads", "each a read"])
@on_uvloop
async def test_a_body_in_crumbs_takes_no_more_memory_than_it_has_bytes(tmp_path: Path, apart: bool) -> None:
    body = b'{"input":"' + b"x" * ((1 << 12 if apart else 1 << 19) - 12) + b'"}'
    crumbs = [b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body), 2)]
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine, pooling=ScriptedEngine()) as rig:
        rig.router.engines["pooling"] = ("pooling", *rig.router.engines["pooling"][1:])
        client = await rig.client()
        await client.send(request(PATH + b"", b"", CHUNKED))
        other = await rig.client()
        if apart:
            for crumb in crumbs:
                await client.send(crumb)
                await asyncio.sleep(0)
        else:
            await client.send(b"".join(crumbs))
        await until(lambda: len(rig.connections) == 2)
        (exchange,) = (c.exchange for c in rig.connections if c.exchange is not None)
        await until(lambda: exchange.upload.size == len(body))
        assert sum(piece.__sizeof__() for piece in exchange.upload.pieces) < 1.3 * len(body) + 1000
        await other.post(b"/v1/nothing", b"{}")
        assert (await other.response()).status == 404
        await client.send(b"0\r\n\r\n")
        assert (await client.response()).error["code"] == "model_required"


@pytest.fixture
def large_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Starts to count; returns the most large reads between two passes of the event loop."""
    most = now = 0
    loop: asyncio.AbstractEventLoop | None = None

    def counted(receive: Callable[[Any, bytes], None]) -> Callable[[Any, bytes], None]:
        def data_received(connection: object, data: bytes) -> None:
            nonlocal now
            now += len(data) >= LARGE_READ
            receive(connection, data)

        return data_received

    def tick() -> None:
        nonlocal most, now
        most, now = max(most, now), 0
        assert loop is not None
        loop.call_soon(tick)

    def start() -> int:
        nonlocal loop
        if loop is None:
            loop = asyncio.get_running_loop()
            tick()
        return most

    for connection in (Downstream, Upstream):
        monkeypatch.setattr(connection, "data_received", counted(connection.data_received))
    return start


def talk(port: int, data: bytes) -> bytes:
    """Sends it and reads all that comes, on a thread."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 20), b""))


@pytest.mark.parametrize("large", ["request", "response"])
@on_uvloop
async def test_large_reads_take_turns(tmp_path: Path, large_reads: Callable[[], int], large: str) -> None:
    """The event loop would read 32 times in a row from each connection that has so much."""
    body = bytes(16 * MIB)

    async def answer(asked: Asked) -> None:
        await asked.read_body()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
        await asked.send(head % len(body) + body if large == "response" else JSON_OK)

    async with Rig(tmp_path, tcp=True, embedding=ScriptedEngine(answer)) as rig:
        large_reads()
        sent = request(PATH, body if large == "request" else b"{}", b"connection: close")
        got = await asyncio.gather(*(in_daemon_thread(partial(talk, rig.port, sent)) for _ in range(4)))
        assert [len(response) > len(body) for response in got] == [large == "response"] * 4
        assert all(response.startswith(b"HTTP/1.1 200 OK\r\n") for response in got)
        assert 0 < large_reads() <= LARGE_READS + 4  # all connections may have one more


@pytest.mark.parametrize("path", [PATH, OWN], ids=["an engine's route", "memoria's own"])
@on_uvloop
async def test_after_a_refusal_a_body_without_end_is_not_read(tmp_path: Path, path: bytes) -> None:
    """Neither parsed nor for long; one of a known length is thrown away, and the connection kept."""
    limits = Limits(body_bytes=MIB)
    async with Rig(tmp_path, rules=rules(tmp_path), limits=limits, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(request(path, b"", CHUNKED) + b"2\r\n{}\r\n")
        sending = asyncio.create_task(flood(client, b"2\r\n{}\r\n" * 1000))
        response = await client.response()
        assert (response.status, response.header(b"connection")) == (401, [b"close"])
        assert await client.closed() == b""
        await asyncio.wait_for(sending, 10)
        client = await rig.client()
        for _ in range(2):
            await client.send(request(path, b"x" * (MIB // 2)))
            response = await client.response()
            assert (response.status, response.header(b"connection")) == (401, [])


@on_uvloop
async def test_an_answer_of_memorias_own_ends_an_unfinished_upload(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine(answer_ok)) as rig:
        client = await rig.client()
        await client.send(request(OWN, b"", CHUNKED) + b"2\r\n{}\r\n")
        sending = asyncio.create_task(flood(client, b"2\r\n{}\r\n" * 1000))
        assert (await client.response()).status == 404
        assert await client.closed() == b""
        await asyncio.wait_for(sending, 10)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (OK + b"x: ", b"y" * 65536),
        (OK, b"x: y\r\n" * 10_000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 1500),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ", b"y" * 65536),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n2;x=", b"y" * 65536),
    ],
    ids=["a field", "fields", "heads before the head", "a trailer", "a chunk's extension"],
)
@on_uvloop
async def test_an_engines_bytes_without_end_that_are_no_body_are_not_kept(
    tmp_path: Path, begin: bytes, more: bytes
) -> None:
    sent = 0

    async def endless(asked: Asked) -> None:
        nonlocal sent
        await asked.read_body()
        await asked.send(begin)
        for _ in range(1 << 10):
            await asked.send(more)
            sent += len(more)

    async with Rig(tmp_path, embedding=ScriptedEngine(endless)) as rig:
        client = await rig.client()
        await client.post(PATH, b"{}")
        response = await client.response()
        if b"{}" in begin:
            assert (response.status, response.body, response.ended) == (200, b"{}", False)
        else:
            assert (response.status, response.error["code"]) == (502, "engine_garbled")
    assert sent < 16 * MIB


@pytest.mark.parametrize("status", [b"600", b"999"])
@on_uvloop
async def test_what_follows_a_status_that_is_none_is_no_answer(tmp_path: Path, status: bytes) -> None:
    async def two(asked: Asked) -> None:
        await asked.read_body()
        first = b"HTTP/1.1 %b X\r\ncontent-length: 0\r\n\r\n" % status
        await asked.send(first + OK + b"content-length: 2\r\n\r\n{}")

    async with Rig(tmp_path, embedding=ScriptedEngine(two)) as rig:
        response = await rig.post(PATH)
        assert (response.status, response.error["code"]) == (502, "engine_garbled")
