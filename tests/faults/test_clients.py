"""Clients that leave, stall, or send too much, and engines whose answers cannot be passed on as they are."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from memoria.config.model import Limits
from memoria.proxy.downstream import connection
from tests.faults.report import Figure
from tests.faults.traffic import percentile
from tests.integration.proxy_rig import (
    Asked,
    Client,
    EngineProtocol,
    Rig,
    ScriptedEngine,
    answer_ok,
    on_uvloop,
    request,
)

CHAT = b"/v1/chat/completions"
EMBEDDINGS = b"/v1/embeddings"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'f\r\ndata: {"n":1}\n\n\r\n'
MIB = 1 << 20
LEAVERS, READERS, HEADS, RACES = 200, 200, 1000, 100_000
LATE_S = 10.0  # a look every quarter of a second, and all of it in this one process


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(8192, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("row", "begun"), [(24, False), (25, True)], ids=["before the first byte", "mid-stream"]
)
@on_uvloop
async def test_clients_that_leave_are_seen_leaving_by_the_engine(
    tmp_path: Path, figure: Figure, row: int, begun: bool
) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        if begun:
            await asked.send(SSE + EVENT)
        await asked.gone.wait()

    engine = ScriptedEngine(script)
    milliseconds = []
    async with Rig(tmp_path, generation=engine) as rig:
        for _ in range(LEAVERS):
            client = await rig.client()
            await client.post(CHAT, b"{}")
            asked = await engine.arrivals.get()
            if begun:
                await client.head()
            left = time.perf_counter()
            client.reset()
            await asked.gone.wait()
            milliseconds.append((time.perf_counter() - left) * 1000)
    milliseconds.sort()
    p99 = percentile(milliseconds, 0.99)
    figure(row, "left to upstream closed, p99", p99, "ms")
    figure(row, "longest", milliseconds[-1], "ms")
    assert p99 <= 250


@pytest.mark.faults
def test_connections_that_engines_close_at_any_moment_cost_no_request(tmp_path: Path, figure: Figure) -> None:
    """Half of the answers are followed by a close within 2 ms: about when the next request comes. As a server
    does that closes what is idle: none closes on a request that it has read."""

    async def script(asked: Asked) -> None:
        await answer_ok(asked)
        if random.random() < 0.5:
            protocol = asked.writer.transport.get_protocol()
            assert isinstance(protocol, EngineProtocol)
            later = asyncio.get_running_loop().call_later
            later(random.random() * 0.002, close_idle, asked, protocol, protocol.reads)

    def close_idle(asked: Asked, protocol: EngineProtocol, reads: int) -> None:
        if protocol.reads == reads:
            asked.writer.close()

    async def ask(client: Client, times: int, statuses: dict[int, int]) -> None:
        for _ in range(times):
            await client.post(CHAT, b"{}")
            status = (await client.response()).status
            statuses[status] = statuses.get(status, 0) + 1

    async def race() -> None:
        engine = ScriptedEngine(script)
        statuses: dict[int, int] = {}
        async with Rig(tmp_path, generation=engine) as rig:
            clients = [await rig.client() for _ in range(8)]
            await asyncio.gather(*(ask(client, RACES // 8, statuses) for client in clients))
            figure(29, "asked again", sum(record.replays for record in rig.exchanges))
        assert statuses == {200: RACES}
        figure(29, "requests", RACES)

    uvloop.run(race())


@on_uvloop
async def test_many_readers_that_take_nothing_are_all_cut(
    tmp_path: Path, figure: Figure, many_descriptors: None
) -> None:
    written = 0

    async def script(asked: Asked) -> None:
        nonlocal written
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        piece = bytes(1 << 14)
        while not asked.gone.is_set():
            await asked.send(piece)
            written += len(piece)

    before = psutil.Process().memory_info().rss
    engine = ScriptedEngine(script)
    async with Rig(tmp_path, client_idle=1.0, embedding=engine) as rig:
        began = time.monotonic()
        deaf = [await _deaf_client(rig, request(EMBEDDINGS, b"{}")) for _ in range(READERS)]
        ended = [await rig.ended.get()]
        first = time.monotonic() - began
        ended += [await rig.ended.get() for _ in range(READERS - 1)]
        last = time.monotonic() - began
        grown = psutil.Process().memory_info().rss - before
        for client in deaf:
            client.reset()
    assert {(record.status, record.complete) for record in ended} == {(200, False)}
    assert grown < 100 * MIB
    assert 1 <= first <= last <= 1 + LATE_S
    figure(30, "readers cut", len(ended))
    figure(30, "cut after, at a limit of 1 s", last, "s")
    figure(30, "each took before, on average", written / READERS / 1024, "KiB")
    figure(30, "proxy and engine grew by", grown / MIB, "MiB")


async def _deaf_client(rig: Rig, data: bytes) -> Client:
    """With as little room for what it does not read as the kernel allows."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", rig.port))
    client = rig.add(Client(*await asyncio.open_connection(sock=raw)))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(data)
    return client


@on_uvloop
async def test_heads_that_never_end_are_closed_and_others_answered(
    tmp_path: Path, figure: Figure, many_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 1.0)
    engine = ScriptedEngine()
    seconds = []
    async with Rig(tmp_path, embedding=engine) as rig:
        began = time.monotonic()
        stalled = [await rig.client() for _ in range(HEADS)]
        for client in stalled:
            await client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: test\r\nx-a: ")
        closed = asyncio.gather(*(client.closed() for client in stalled))
        while not closed.done():
            asked = time.perf_counter()
            assert (await rig.post(EMBEDDINGS)).status == 200
            seconds.append(time.perf_counter() - asked)
        assert set(await closed) == {b""}
        last = time.monotonic() - began
    figure(31, "heads closed", HEADS)
    figure(31, "closed after, at a limit of 1 s", last, "s")
    figure(31, "others' p99 meanwhile", percentile(sorted(seconds), 0.99) * 1000, "ms")
    assert 1 <= last <= 1 + LATE_S


@on_uvloop
async def test_bodies_past_the_limit_take_no_memory(tmp_path: Path, figure: Figure) -> None:
    """Chunked ones, of unannounced length; what is within the limit goes on to the engine."""

    async def throw_away(asked: Asked) -> None:
        while await asked.reader.read(MIB):
            pass

    engine = ScriptedEngine(throw_away)
    piece = b"100000\r\n%b\r\n" % bytes(MIB)
    most = before = psutil.Process().memory_info().rss
    async with Rig(tmp_path, limits=Limits(body_bytes=32 * MIB), embedding=engine) as rig:
        for _ in range(10):
            client = await rig.client()
            await client.send(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            answer = asyncio.create_task(client.response())
            while not answer.done():
                await client.send(piece)
                most = max(most, psutil.Process().memory_info().rss)
            assert (await answer).status == 413
    assert most - before < 32 * MIB
    figure(32, "10 bodies of over 32 MiB, process grew by", (most - before) / MIB, "MiB")


@on_uvloop
async def test_a_redirect_is_not_followed_and_shows_no_engine(tmp_path: Path) -> None:
    elsewhere = ScriptedEngine()

    async def redirect(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://localhost/v1/embeddings/\r\n"
            b"refresh: 0; url=http://localhost/\r\nset-cookie: a=b\r\n"
            b'www-authenticate: Basic\r\nalt-svc: h2=":1"\r\nserver: uvicorn\r\n'
            b"strict-transport-security: max-age=1\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n"
        )

    engine = ScriptedEngine(redirect)
    async with Rig(tmp_path, embedding=engine, generation=elsewhere) as rig:
        response = await rig.post(EMBEDDINGS)
    assert response.status == 307
    assert [name for name, _ in response.headers] == [b"x-kept", b"content-length", b"x-request-id"]
    assert len(engine.asked) == 1
    assert elsewhere.asked == []
