"""The front door on real sockets: who may ask, who waits for a place, and what is changed in a body."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from memoria.config.model import Filters, Hold, Timeouts
from memoria.proxy.access.keys import KeyRing
from memoria.proxy.access.rules import AccessRules
from memoria.proxy.downstream import connection
from memoria.proxy.errors import Refusal
from memoria.vllm.facts import UnixAddress
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, answer_ok, on_uvloop, until

EMBEDDINGS = b"/v1/embeddings"
KEY = b"sk-0123456789abcdef"
RESTARTING = Refusal(503, "engine `embedding` is starting", "engine_not_ready", retry_after=10, ready_in=0.0)


def rules(folder: Path, *, keys: bool = False) -> AccessRules:
    file = folder / "keys"
    file.write_text(f"ana: {KEY.decode()}\n")
    file.chmod(0o600)
    return AccessRules(
        hosts=frozenset((b"test", b"localhost")),
        origins=frozenset((b"https://app.example",)),
        keys=KeyRing(file) if keys else None,
    )


class Doorkeeper:
    """A script that answers each request when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, asked: Asked) -> None:
        await self.open.wait()
        await answer_ok(asked)


@on_uvloop
async def test_without_its_key_a_client_is_told_to_bring_one(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, rules=rules(tmp_path, keys=True), embedding=engine) as rig:
        refused = await rig.post(EMBEDDINGS)
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert refused.header(b"www-authenticate")
        assert (await rig.post(EMBEDDINGS, b"{}", b"authorization: Bearer " + KEY)).status == 200
        assert (await rig.post(EMBEDDINGS, b"{}", b"x-api-key: " + KEY)).status == 200
    assert len(engine.asked) == 2
    assert all(KEY not in asked.head for asked in engine.asked)


@on_uvloop
async def test_what_memoria_itself_answers_needs_the_key_too(tmp_path: Path) -> None:
    async with Rig(tmp_path, rules=rules(tmp_path, keys=True), embedding=ScriptedEngine()) as rig:
        assert (await rig.post(b"/v1/nothing")).status == 401
        assert (await rig.post(b"/v1/nothing", b"{}", b"x-api-key: " + KEY)).status == 404


@on_uvloop
async def test_a_page_of_another_site_is_refused_and_a_listed_one_may_read_the_answer(tmp_path: Path) -> None:
    kind = b"content-type: application/json"
    async with Rig(tmp_path, rules=rules(tmp_path), embedding=ScriptedEngine()) as rig:
        assert (await rig.post(EMBEDDINGS, b"{}", kind, b"origin: https://evil.example")).status == 403
        allowed = await rig.post(EMBEDDINGS, b"{}", kind, b"origin: https://app.example")
        assert allowed.status == 200
        assert allowed.header(b"access-control-allow-origin") == [b"https://app.example"]
        unknown = await rig.post(b"/v1/nothing", b"{}", kind, b"origin: https://app.example")
        assert unknown.status == 404
        assert unknown.header(b"access-control-allow-origin") == [b"https://app.example"]


@on_uvloop
async def test_a_preflight_is_answered_without_an_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, rules=rules(tmp_path), embedding=engine) as rig:
        client = await rig.client()
        await client.send(
            b"OPTIONS /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n"
            b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
        answer = await client.head()
        assert answer.status == 204
        assert answer.header(b"access-control-allow-headers") == [b"authorization"]
        assert answer.header(b"content-length") == []
        await client.post(EMBEDDINGS, b"{}")
        assert (await client.response()).status == 200
    assert len(engine.asked) == 1


@on_uvloop
async def test_a_name_that_is_not_ours_is_misdirected(tmp_path: Path) -> None:
    async with Rig(tmp_path, rules=rules(tmp_path), embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert (await client.response()).status == 421


@on_uvloop
async def test_a_program_with_its_key_may_use_any_name(tmp_path: Path) -> None:
    async with Rig(tmp_path, rules=rules(tmp_path, keys=True), embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        start = b"POST /v1/embeddings HTTP/1.1\r\nHost: host.docker.internal\r\nContent-Length: 2\r\n"
        await client.send(start + b"X-Api-Key: " + KEY + b"\r\n\r\n{}")
        assert (await client.response()).status == 200
        await client.send(start + b"X-Api-Key: wrong\r\n\r\n{}")
        assert (await client.response()).status == 421


@on_uvloop
async def test_past_the_limit_a_request_waits_for_a_place(tmp_path: Path) -> None:
    door = Doorkeeper()
    engine = ScriptedEngine(door)
    async with Rig(tmp_path, max_requests=1, hold=Hold(), embedding=engine) as rig:
        first, second = await rig.client(), await rig.client()
        await first.post(EMBEDDINGS, b"1")
        await engine.arrivals.get()
        await second.post(EMBEDDINGS, b"2")
        await until(lambda: rig.admission.load("embedding").waiting == 1)
        door.open.set()
        assert (await first.response()).status == 200
        assert (await second.response()).status == 200
    assert [asked.body for asked in engine.asked] == [b"1", b"2"]


@on_uvloop
async def test_without_room_to_wait_the_answer_is_429_with_a_time_to_come_back(tmp_path: Path) -> None:
    door = Doorkeeper()
    engine = ScriptedEngine(door)
    async with Rig(tmp_path, max_requests=1, hold=Hold(requests=0), embedding=engine) as rig:
        first = await rig.client()
        await first.post(EMBEDDINGS, b"1")
        await engine.arrivals.get()
        refused = await rig.post(EMBEDDINGS)
        assert (refused.status, refused.error["code"]) == (429, "engine_busy")
        assert refused.header(b"retry-after")
        door.open.set()
        assert (await first.response()).status == 200


@on_uvloop
async def test_a_client_that_leaves_the_queue_takes_no_place(tmp_path: Path) -> None:
    door = Doorkeeper()
    engine = ScriptedEngine(door)
    async with Rig(tmp_path, max_requests=1, hold=Hold(), embedding=engine) as rig:
        first, second = await rig.client(), await rig.client()
        await first.post(EMBEDDINGS, b"1")
        await engine.arrivals.get()
        await second.post(EMBEDDINGS, b"2")
        await until(lambda: rig.admission.load("embedding").waiting == 1)
        second.reset()
        await until(lambda: rig.admission.load("embedding").waiting == 0)
        door.open.set()
        assert (await first.response()).status == 200
    assert [asked.body for asked in engine.asked] == [b"1"]


@on_uvloop
async def test_a_request_is_held_while_its_engine_starts(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), embedding=ScriptedEngine()) as rig:
        rig.router.refusal = RESTARTING
        client = await rig.client()
        await client.post(EMBEDDINGS, b"{}")
        await until(lambda: rig.admission.load("embedding").waiting == 1)
        rig.router.refusal = None
        rig.admission.changed("embedding")
        assert (await client.response()).status == 200


@on_uvloop
async def test_an_embedding_is_held_and_asked_again_when_its_engine_dies(tmp_path: Path) -> None:
    dying: list[Rig] = []

    async def die(asked: Asked) -> None:
        await asked.read_body()
        dying[0].router.refusal = RESTARTING
        asked.writer.transport.abort()

    engine = ScriptedEngine(die, answer_ok)
    async with Rig(tmp_path, hold=Hold(), embedding=engine) as rig:
        dying.append(rig)
        client = await rig.client()
        await client.post(EMBEDDINGS, b"again")
        await until(lambda: rig.admission.load("embedding").waiting == 1)
        rig.router.refusal = None
        rig.admission.changed("embedding")
        assert (await client.response()).status == 200
    assert [asked.body for asked in engine.asked] == [b"again", b"again"]


async def waits(rig: Rig) -> None:
    while rig.admission.load("embedding").waiting == 0:  # noqa: ASYNC110 (nothing tells)
        await asyncio.sleep(0.001)


@on_uvloop
async def test_a_request_to_an_engine_that_just_ended_waits_for_the_next_start(tmp_path: Path) -> None:
    """It is gone already, and its supervisor does not know yet."""
    async with Rig(tmp_path, hold=Hold(), embedding=ScriptedEngine()) as rig:
        kind, models, address = rig.router.engines["embedding"]
        rig.router.engines["embedding"] = (kind, models, UnixAddress(str(tmp_path / "ended.sock")))
        answer = asyncio.create_task(rig.post(EMBEDDINGS))
        await waits(rig)
        rig.router.refusal = RESTARTING
        rig.admission.changed("embedding")
        rig.router.engines["embedding"] = (kind, models, address)
        rig.router.refusal = None
        rig.admission.changed("embedding")
        assert (await answer).status == 200


@on_uvloop
async def test_an_engine_that_nobody_says_has_ended_is_tried_again(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), embedding=ScriptedEngine()) as rig:
        rig.router.engines["embedding"] = ("pooling", ("m",), UnixAddress(str(tmp_path / "nobody.sock")))
        refused = await rig.post(EMBEDDINGS)
        assert (refused.status, refused.error["code"]) == (502, "engine_unreachable")
        assert rig.router.admitted == 2


@on_uvloop
async def test_a_request_that_ends_its_engine_does_not_end_the_next_one_and_so_on(tmp_path: Path) -> None:
    async def end(asked: Asked) -> None:
        await asked.read_body()
        kind, models, address = rig.router.engines["embedding"]
        nobody = UnixAddress(str(tmp_path / "ended.sock"))
        rig.router.engines["embedding"] = (kind, models, nobody)
        asked.writer.close()
        await waits(rig)
        rig.router.engines["embedding"] = (kind, models, address)
        rig.admission.changed("embedding")

    engine = ScriptedEngine(end)
    async with Rig(tmp_path, hold=Hold(), embedding=engine) as rig:
        refused = await rig.post(EMBEDDINGS)
        assert (refused.status, refused.error["code"]) == (502, "engine_lost")
        assert len(engine.asked) == 2


@on_uvloop
async def test_the_hold_ends_with_the_reason(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(seconds=0.05), embedding=ScriptedEngine()) as rig:
        rig.router.refusal = RESTARTING
        refused = await rig.post(EMBEDDINGS)
        assert (refused.status, refused.error["message"]) == (503, "engine `embedding` is starting")


@on_uvloop
async def test_filters_change_a_body_that_comes_in_pieces(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    changes = {"embedding": Filters(strip=("user",), set={"dimensions": 16})}
    async with Rig(tmp_path, filters=changes, embedding=engine) as rig:
        client = await rig.client()
        body = b'{"input": "x", "user": "ana"}'
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        await client.send(head + body[:10])
        await client.send(body[10:])
        assert (await client.response()).status == 200
        refused = await rig.post(EMBEDDINGS, b"no json")
        assert (refused.status, refused.error["code"]) == (400, "bad_request")
    assert json.loads(engine.asked[0].body) == {"input": "x", "dimensions": 16}
    assert len(engine.asked) == 1


@on_uvloop
async def test_what_memoria_answers_itself_has_an_id_too(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        assert (await rig.post(b"/own", b"{}", b"x-request-id: mine")).header(b"x-request-id") == [b"mine"]
        first, second = [(await rig.post(b"/own")).header(b"x-request-id") for _ in range(2)]
        assert len(first) == len(second) == 1
        assert first != second


@on_uvloop
async def test_after_connect_the_connection_is_closed(tmp_path: Path) -> None:
    """What follows it may not be HTTP."""
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(b"CONNECT /v1/embeddings HTTP/1.1\r\nhost: test\r\n\r\n")
        response = await client.response()
        assert (response.status, response.header(b"connection")) == (405, [b"close"])
        assert await client.closed() == b""


@on_uvloop
async def test_a_connection_too_many_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 2)
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        kept = [await rig.client() for _ in range(2)]
        for client in kept:
            await client.post(EMBEDDINGS, b"{}")
            assert (await client.response()).status == 200
        refused = await (one_more := await rig.client()).response()
        assert (refused.status, refused.error["code"]) == (503, "too_many_connections")
        assert await one_more.closed() == b""
        kept[0].reset()
        await until(lambda: len(rig.connections) == 1)
        assert (await rig.post(EMBEDDINGS)).status == 200


def has_grown_to(rig: Rig, size: int) -> bool:
    return rig.admission.uploads._total == size


@on_uvloop
async def test_small_bodies_that_do_not_end_wait_for_room_and_not_for_ever(tmp_path: Path) -> None:
    """Two have room, a third has its turn beyond it, a fourth is not read from."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: test\r\ncontent-length: 50000\r\n\r\n"
    hold, timeouts = Hold(bytes=100_000, seconds=0.2), Timeouts(idle=0.4)
    async with Rig(tmp_path, hold=hold, timeouts=timeouts, embedding=ScriptedEngine()) as rig:
        slow = [await rig.client() for _ in range(4)]
        for client in slow:
            before = rig.admission.uploads._total
            await client.send(head + b"x" * 40_000)
            await until(partial(has_grown_to, rig, before + 40_000))
        refused = await slow[3].response()
        assert (refused.status, refused.error["code"]) == (429, "hold_full")
        await slow[2].send(b"x" * 10_000)
        assert (await slow[2].response()).status == 200
        await rig.ended.get()
        slow[0].reset()
        await rig.ended.get()
        await rig.ended.get()
        await slow[1].send(b"x" * 10_000)
        assert (await slow[1].response()).status == 200
        assert (await rig.post(EMBEDDINGS, b"x" * 50_000)).status == 200
