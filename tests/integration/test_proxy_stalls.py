"""Clients and engines that stall, and what piles up meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.types import Receive, Scope, Send

from memoria.config.model import Timeouts
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, answer_ok, on_uvloop, request


async def hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.gone.wait()


@on_uvloop
async def test_a_client_that_stops_uploading_is_a_408_and_not_the_engines_fault(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0.05), patience=0.2, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\nsome")
        response = await client.response()
        assert (response.status, response.error["code"]) == (408, "upload_stalled")
        assert await client.closed() == b""


@on_uvloop
async def test_a_client_that_sends_no_body_at_all_is_a_408(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, patience=0.1, generation=engine) as rig:
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
    async with Rig(tmp_path, patience=0.3, embedding=engine) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request(b"/v1/embeddings", b"{}"))
        await engine.arrivals.get()
        exchange = await rig.ended.get()
        await engine.asked[0].gone.wait()
    assert exchange.complete is False
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

    async with Rig(tmp_path, patience=0.3, app=endless) as rig:
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
