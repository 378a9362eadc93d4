"""Bodies that come slowly: what they may hold up, and what not."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from memoria.aio import FREED, Backlog
from memoria.config.model import Filters, Hold
from memoria.proxy.exchange import exchange
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

CHAT = b"/v1/chat/completions"


async def hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.gone.wait()


@pytest.mark.parametrize("here", [0, 4, 60_000])
@on_uvloop
async def test_an_unfinished_upload_does_not_hold_up_others(tmp_path: Path, here: int) -> None:
    async with Rig(tmp_path, max_requests=1, generation=ScriptedEngine()) as rig:
        slow = await rig.client()
        await slow.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\n" + b"x" * here
        )
        assert [(await rig.post(CHAT)).status for _ in range(3)] == [200, 200, 200]
        await slow.send(b"x" * (100_000 - here))
        assert (await slow.response()).status == 200


@pytest.mark.parametrize("pace", ["stalls", "crawls"])
@on_uvloop
async def test_a_large_upload_that_is_too_slow_gives_its_place_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: str
) -> None:
    async def crawl() -> None:
        while True:
            await slow.send(b"x")
            await asyncio.sleep(0.02)

    monkeypatch.setattr(exchange, "GRACE_S", 0.1)
    async with Rig(
        tmp_path, max_requests=1, hold=Hold(), client_idle=2.0, generation=ScriptedEngine(hang, answer_ok)
    ) as rig:
        slow = await rig.client()
        await slow.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\n" + b"x" * 70_000
        )
        crawling = asyncio.create_task(crawl()) if pace == "crawls" else None
        assert rig.admission.load("generation").waiting == 0
        assert (await rig.post(CHAT)).status == 200
        assert (await slow.response()).error["code"] == "upload_stalled"
        if crawling is not None:
            crawling.cancel()


ROOM = 2**20
BODY = b'{"x":"' + b"x" * (ROOM // 8) + b'","model":"b"}'


def two_engines(folder: Path, *, max_requests: int = 1) -> Rig:
    """On one path, so that a body must be whole before its engine is known."""
    b = ScriptedEngine(answer_ok)
    return Rig(
        folder, max_requests=max_requests, hold=Hold(bytes=ROOM), a=ScriptedEngine(hang, answer_ok), b=b
    )


@on_uvloop
async def test_uploads_of_more_than_there_is_room_for_take_turns_and_none_is_refused(tmp_path: Path) -> None:
    """As from a batch job: twelve at once, one and a half times of what may be here."""
    async with two_engines(tmp_path, max_requests=100) as rig:
        clients = [await rig.client() for _ in range(12)]
        whole = request(CHAT, BODY)
        for start in range(0, len(whole), len(whole) // 7):
            for client in clients:
                await client.send(whole[start : start + len(whole) // 7])
        assert [(await client.response()).status for client in clients] == [200] * 12


@on_uvloop
async def test_a_whole_body_is_written_as_its_engine_takes_it(tmp_path: Path) -> None:
    """And counts until then. Written at once it would be freed at once, which takes long."""
    read = asyncio.Event()

    async def late(asked: Asked) -> None:
        await read.wait()
        await answer_ok(asked)

    body = b'{"x":"' + b"x" * (16 * ROOM) + b'","model":"b"}'
    b = ScriptedEngine(late)
    async with Rig(tmp_path, hold=Hold(bytes=32 * ROOM), a=ScriptedEngine(), b=b) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.post(CHAT, body))
        await b.arrivals.get()
        (exchange,) = (c.exchange for c in rig.connections if c.exchange is not None)
        upload, uploads = exchange.upload, rig.admission.uploads
        assert exchange._upstream._transport.get_write_buffer_size() < ROOM
        assert (upload.pieces, sum(map(len, upload.unwritten)) > 14 * ROOM) == (None, True)
        assert uploads._total > 15 * ROOM
        read.set()
        assert (await client.response()).status == 200
        await sending
        assert b.asked[0].body == body
        assert uploads._total == 0


@pytest.mark.parametrize("ends", ["refused", "answered before it was read", "client gone"])
@on_uvloop
async def test_memory_of_a_large_body_is_given_back_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    async def early(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
        await asked.gone.wait()

    left: list[int] = []
    free = Backlog.free

    def counted(backlog: Backlog, pieces: list[bytes]) -> None:
        left.append(len(pieces))
        free(backlog, pieces)

    monkeypatch.setattr(Backlog, "free", counted)
    model = b"nobody" if ends == "refused" else b"b"
    body = b'{"x":"' + b"x" * (16 * ROOM) + b'","model":"%b"}' % model
    b = ScriptedEngine(early if ends.startswith("answered") else hang)
    async with Rig(tmp_path, hold=Hold(bytes=32 * ROOM), a=ScriptedEngine(), b=b) as rig:
        client = await rig.client()
        if ends == "client gone":
            await client.send(request(CHAT, body)[:-1])
            await until(lambda: rig.admission.uploads._total == len(body) - 1)
            client.reset()
        else:
            await client.post(CHAT, body)
            assert (await client.response()).status == (404 if ends == "refused" else 413)
        await until(lambda: bool(left) and left[-1] <= FREED)
        assert left[0] > 40
        assert all(before - after == FREED for before, after in pairwise(left))


@on_uvloop
async def test_fields_of_filters_that_come_with_a_reload_are_found_in_what_was_scanned(
    tmp_path: Path,
) -> None:
    body = b'{"user":1,"x":"' + b"x" * ROOM + b'","model":"b","seed":2}'
    b = ScriptedEngine()
    filters = {"b": Filters(("seed",), {})}
    async with Rig(tmp_path, hold=Hold(), filters=filters, a=ScriptedEngine(), b=b) as rig:
        client = await rig.client()
        await client.send(request(CHAT, body)[:-1])
        await until(lambda: rig.admission.uploads._total == len(body) - 1)
        policy = rig.context.policy
        rig.context.replace_policy(replace(policy, filters={"b": Filters(("user",), {"n": 1})}))
        await client.send(body[-1:])
        assert (await client.response()).status == 200
        got = json.loads(b.asked[0].body)
        del got["x"]
        assert got == {"model": "b", "seed": 2, "n": 1}


@pytest.mark.parametrize("number", [1, 4])
@on_uvloop
async def test_a_client_whose_uploads_are_slow_holds_up_no_other(tmp_path: Path, number: int) -> None:
    """It has taken all the room and its turn; others upload and wait as if it were not there."""
    async with two_engines(tmp_path) as rig:
        for _ in range(number):
            local = ("127.0.0.2", 0)
            slow = rig.add(Client(*await asyncio.open_connection(rig.host, rig.port, local_addr=local)))
            head = b"POST %b HTTP/1.1\r\nhost: t\r\ncontent-length: 9000000\r\n\r\n" % CHAT
            await slow.send(head + b"x" * (ROOM + 1))
        await until(lambda: rig.admission.uploads._total > ROOM)
        others = [await rig.client() for _ in range(4)]
        for client in others:
            await client.send(request(CHAT, BODY)[:-1])
        for client in others:
            await client.send(b"}")
        assert [(await client.response()).status for client in others] == [200] * 4

        busy, waits = await rig.client(), await rig.client()
        await busy.post(CHAT, b'{"model":"a"}')
        await until(lambda: rig.admission.load("a").in_flight == 1)
        await waits.post(CHAT, BODY.replace(b'"b"', b'"a"'))
        await until(lambda: rig.admission.load("a").waiting == 1)
        busy.reset()
        assert (await waits.response()).status == 200


@on_uvloop
async def test_an_upload_that_others_wait_for_must_not_crawl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "GRACE_S", 0.1)
    async with two_engines(tmp_path) as rig:
        slow, fast = await rig.client(), await rig.client()
        whole = request(CHAT, b'{"model":"b","x":"' + b"x" * (2 * ROOM) + b'"}')
        await slow.send(whole[:-1])
        await until(lambda: rig.admission.uploads._total > ROOM)
        sending = asyncio.create_task(fast.send(whole))
        response = await slow.response()
        assert (response.status, response.error["code"]) == (408, "upload_stalled")
        assert (await fast.response()).status == 200
        await sending
