"""Clients and engines that stall, and what piles up meanwhile."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from memoria.config.model import Filters, Hold, Timeouts
from tests.integration.proxy_rig import (
    Asked,
    Client,
    Rig,
    ScriptedEngine,
    answer_ok,
    on_uvloop,
    request,
    until,
)


async def hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.gone.wait()


async def ticks(rig: Rig, number: int) -> None:
    """Waits for the relay's clock."""
    for _ in range(number):
        await asyncio.sleep(rig.context.connections.interval)


@on_uvloop
async def test_a_client_that_stops_uploading_is_a_408_and_not_the_engines_fault(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0.05), client_idle=0.2, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\nsome")
        response = await client.response()
        assert (response.status, response.error["code"]) == (408, "upload_stalled")
        assert await client.closed() == b""


@pytest.mark.parametrize("streams", [False, True])
@on_uvloop
async def test_an_engine_is_not_silent_while_its_core_works(tmp_path: Path, streams: bool) -> None:
    """A whole answer, a long prefill, and vLLM's own queue look alike: not a byte for long."""
    works = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.read_body()
        if streams:
            await asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
            await asked.send(b"transfer-encoding: chunked\r\n\r\n")
        await works.wait()
        whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
        await asked.send(b"3\r\n1\n\n\r\n0\r\n\r\n" if streams else whole)

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0.05), generation=engine) as rig:
        rig.router.works_until = math.inf
        client = await rig.client()
        await client.post(b"/v1/completions", b"{}")
        await engine.arrivals.get()
        await ticks(rig, 8)  # four limits long
        works.set()
        assert (await client.response()).status == 200

        works.clear()
        rig.router.works_until = time.monotonic()
        began = time.monotonic()
        await client.post(b"/v1/completions", b"{}")
        response = await client.response()
        if streams:
            assert b"engine_timeout" in response.body
        else:
            assert (response.status, response.error["code"]) == (504, "engine_timeout")
        assert time.monotonic() - began < 2


@on_uvloop
async def test_without_a_limit_an_engine_may_be_silent_for_ever(tmp_path: Path) -> None:
    answers = asyncio.Event()

    async def script(asked: Asked) -> None:
        await answers.wait()
        await answer_ok(asked)

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0), client_idle=0.1, generation=engine) as rig:
        client = await rig.client()
        await client.post(b"/v1/completions", b"{}")
        await engine.arrivals.get()
        await ticks(rig, 8)
        answers.set()
        assert (await client.response()).status == 200


@on_uvloop
async def test_a_client_that_sends_no_body_at_all_is_a_408(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, client_idle=0.1, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n")
        assert (await client.response()).status == 408
        assert engine.connections == 0


@on_uvloop
async def test_a_reader_that_takes_nothing_stops_its_engine_and_is_cut(tmp_path: Path) -> None:
    written = 0
    total = 256 * 2**20

    async def script(asked: Asked) -> None:
        nonlocal written
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        piece = bytes(2**18)
        while not asked.gone.is_set():
            await asked.send(piece)
            written += len(piece)

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, client_idle=0.3, embedding=engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request(b"/v1/embeddings", b"{}"))
        await engine.arrivals.get()
        record = await rig.ended.get()
        await engine.asked[0].gone.wait()
    assert record.complete is False
    assert written < 24 * 2**20  # the kernel's socket buffers, mostly


@on_uvloop
async def test_a_reader_that_takes_nothing_of_what_memoria_itself_answers_is_cut(tmp_path: Path) -> None:
    gone, sent = asyncio.Event(), 0

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.ensure_future(_until_left(receive))
        while not leaving.done():
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
            sent += 2**16
            await asyncio.sleep(0)
        gone.set()

    async with Rig(tmp_path, client_idle=0.3, app=endless) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request(b"/admin/events", method=b"GET"))
        await asyncio.wait_for(gone.wait(), 10)
    assert sent < 24 * 2**20  # the kernel's socket buffers, mostly


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@on_uvloop
async def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    body = bytes(range(256)) * 65536  # 16 MiB

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    engine = ScriptedEngine(script, answer_ok)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request(b"/v1/embeddings", b"{}"))
        await engine.arrivals.get()
        await rig.post(b"/v1/score")  # others are not held up
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.response()).body == body
        await client.post(b"/v1/embeddings", b"{}")
        assert (await client.response()).status == 200


@on_uvloop
async def test_an_engine_that_takes_no_upload_stops_the_client(tmp_path: Path) -> None:
    free = asyncio.Event()

    async def script(asked: Asked) -> None:
        await free.wait()
        await answer_ok(asked)

    engine = ScriptedEngine(script)
    body = b"x" * (32 * 2**20)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        upload = asyncio.create_task(client.send(request(b"/v1/completions", body)))
        await engine.arrivals.get()
        await rig.post(b"/v1/nothing")
        assert not upload.done()
        free.set()
        assert (await client.response()).status == 200
        await upload
        assert engine.asked[0].body == body


def piled_up(rig: Rig) -> int:
    """Bytes that memoria keeps for clients that do not take them."""
    connections = list(rig._server.server_state.connections)
    return sum(connection.transport.get_write_buffer_size() for connection in connections)


async def narrow_client(rig: Rig) -> tuple[Client, socket.socket]:
    """It reads nothing, and its kernel takes as little as can be."""
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    bare.setblocking(False)
    await asyncio.get_running_loop().sock_connect(bare, ("127.0.0.1", rig.port))
    client = rig.add(Client(*await asyncio.open_connection(sock=bare)))
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    return client, bare


@on_uvloop
async def test_a_slow_reader_makes_memoria_keep_no_more_than_half_a_mebibyte(tmp_path: Path) -> None:
    """Not by a large answer after many small ones, either: nothing is asked for it while it is behind."""
    sent = 0

    async def script(asked: Asked) -> None:
        nonlocal sent
        await asked.read_body()
        size = 30_000 if len(engine.asked) < 300 else 64 * 2**20
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // 30_000):
            await asked.send(bytes(30_000))
            sent += 30_000

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, embedding=engine) as rig:
        client, _ = await narrow_client(rig)
        sending = asyncio.create_task(client.send(request(b"/v1/embeddings", b"{}") * 400))
        before = -1
        while sent != before or not sent:
            before = sent
            await asyncio.sleep(0.1)
        most = piled_up(rig)
        client.reset()
        sending.cancel()
    print(f"kept for a reader that takes nothing: {most / 2**10:.0f} KiB")
    assert 0 < most < 2**19


@on_uvloop
async def test_a_client_that_does_not_read_its_refusals_is_not_read_from(tmp_path: Path) -> None:
    """memoria's own answers pile up no more than an engine's."""
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client, _ = await narrow_client(rig)
        refused = request(b"/v1/embeddings", method=b"GET") * 1000
        with suppress(TimeoutError):
            while True:
                await asyncio.wait_for(client.send(refused), 1.0)
        await until(lambda: piled_up(rig) > 0)
        (connection,) = rig.connections
        await until(lambda: connection.flow.write_paused)
        assert 0 < piled_up(rig) < 2**20
        client.reset()


@on_uvloop
async def test_who_never_takes_the_end_of_an_answer_is_cut(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 30000\r\n\r\n" + bytes(30_000))

    async with Rig(tmp_path, client_idle=0.3, embedding=ScriptedEngine(script)) as rig:
        client, _ = await narrow_client(rig)
        sending = asyncio.create_task(client.send(request(b"/v1/embeddings", b"{}") * 400))
        await until(lambda: not rig._server.server_state.connections)
        sending.cancel()


def leave_by(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    elif how == "close":
        client.writer.close()
    else:
        client.writer.write_eof()


leaving = pytest.mark.parametrize("how", ["reset", "close", "half-close"])


@leaving
@on_uvloop
async def test_a_client_that_leaves_with_a_request_behind_is_noticed(tmp_path: Path, how: str) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(request(b"/v1/completions", b"{}") * 2)
        asked = await engine.arrivals.get()
        left = time.monotonic()
        leave_by(client, how)
        await asked.gone.wait()
        print(f"noticed after {(time.monotonic() - left) * 1000:.0f} ms")
        assert (await rig.ended.get()).status == 499
        assert len(engine.asked) == 1


@leaving
@on_uvloop
async def test_a_client_that_leaves_with_a_large_body_in_the_queue_is_noticed(
    tmp_path: Path, how: str
) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, max_requests=1, hold=Hold(), generation=engine) as rig:
        await (await rig.client()).post(b"/v1/completions", b"{}")
        await engine.arrivals.get()
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000\r\n\r\n" + bytes(200_000)
        )
        await until(lambda: rig.admission.load("generation").waiting == 1)
        leave_by(client, how)
        assert (await rig.ended.get()).status == 499
        assert rig.admission.load("generation").waiting == 0


@pytest.mark.parametrize("filtered", [False, True], ids=["shared route", "filters"])
@on_uvloop
async def test_bodies_that_must_be_whole_first_have_one_bound_together(
    tmp_path: Path, filtered: bool
) -> None:
    """`hold.bytes`; but one may be as large as bodies may be. The others wait as long as requests may."""
    hold, timeouts = Hold(bytes=2**20, seconds=0.1), Timeouts(idle=0.2)
    filters = {"a": Filters(strip=("x",))}
    alone = Rig(tmp_path, hold=hold, timeouts=timeouts, filters=filters, a=ScriptedEngine())
    two = Rig(tmp_path, hold=hold, timeouts=timeouts, a=ScriptedEngine(), b=ScriptedEngine())
    body = b'{"model":"a","x":"' + b"x" * (4 * 2**20) + b'"}'
    async with alone if filtered else two as rig:
        first = await rig.client()
        await first.send(request(b"/v1/completions", body)[:-1])
        for _ in range(3):
            client = await rig.client()
            sending = asyncio.create_task(client.send(request(b"/v1/completions", body)))
            response = await client.response()
            assert (response.status, response.error["code"]) == (429, "hold_full")
            assert response.header(b"retry-after") == [b"1"]
            await sending
        await first.send(body[-1:])
        assert (await first.response()).status == 200
        assert (await rig.post(b"/v1/completions", body)).status == 200  # and it is free again
    assert rig.admission.uploads._total == 0
