"""What a client sees of its wait for an engine on demand: Server-Timing, and comments on a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memoria.config.model import Hold
from memoria.proxy.errors import Refusal
from tests.integration.proxy_rig import Asked, Client, Rig, Script, ScriptedEngine, on_uvloop, until

WAKES = Refusal(503, "engine `generation` is waking", "engine_not_ready", retry_after=3, ready_in=0.0)
CHAT, JSON = b"/v1/chat/completions", b"content-type: application/json"
STREAM = b'{"model":"generation","messages":[{"role":"user","content":"Hello"}],"stream":true}'
WHOLE = STREAM.replace(b"true", b"false")
EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b'f\r\ndata: {"n":0}\n\n\r\n'
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
REFUSED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n"
    b'{"error":{"message":"a\nlong"}'
)


def script(answer: bytes) -> Script:
    async def answered(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(answer)

    return answered


async def told(rig: Rig) -> None:
    """A tick of the clock that watches connections, now: it comes once a second by itself."""
    await until(lambda: rig.admission.load("generation").waiting > 0)
    for connection in rig.context.connections:
        connection.on_tick(0.0)


def wake(rig: Rig) -> None:
    rig.router.refusal = None
    rig.admission.changed("generation")


async def asking(rig: Rig, body: bytes) -> Client:
    rig.router.refusal = WAKES
    client = await rig.client()
    await client.post(CHAT, body, JSON)
    await told(rig)
    return client


@on_uvloop
async def test_an_answer_says_how_long_it_waited_and_its_body_does_not(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), tell_after=1e-9, generation=ScriptedEngine(script(REFUSED))) as rig:
        client = await asking(rig, WHOLE)
        wake(rig)
        answer = await client.response()
        assert answer.status == 400
        assert [value[:9] for value in answer.header(b"server-timing")] == [b"hold;dur="]
        assert answer.body == REFUSED.partition(b"\r\n\r\n")[2]
        await client.post(CHAT, WHOLE, JSON)
        assert not (await client.response()).header(b"server-timing")


@on_uvloop
async def test_a_stream_that_waits_gets_comments_and_then_its_events(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), tell_after=1e-9, generation=ScriptedEngine(script(EVENTS))) as rig:
        client = await asking(rig, STREAM)
        await told(rig)
        wake(rig)
        answer = await client.response()
        assert (answer.status, answer.ended) == (200, True)
        assert (
            answer.body == b": waiting for generation, for 0 s\n\n" * 2 + b'data: {"n":0}\n\ndata: [DONE]\n\n'
        )
        assert answer.header(b"x-request-id")
        await client.post(CHAT, STREAM, JSON)  # on the same connection
        assert (await client.response()).body == b'data: {"n":0}\n\ndata: [DONE]\n\n'
        assert [record.status for record in rig.exchanges] == [200, 200]


@on_uvloop
async def test_an_engines_refusal_after_a_comment_is_an_event(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), tell_after=1e-9, generation=ScriptedEngine(script(REFUSED))) as rig:
        client = await asking(rig, STREAM)
        wake(rig)
        answer = await client.response()
        assert (answer.status, answer.ended) == (200, True)
        assert answer.body.endswith(b'data: {"error":{"message":"a long"}\n\ndata: [DONE]\n\n')


@on_uvloop
async def test_memorias_refusal_after_a_comment_is_an_event(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(seconds=0.3), tell_after=1e-9, generation=ScriptedEngine()) as rig:
        client = await asking(rig, STREAM)
        answer = await client.response()
        assert (answer.status, answer.ended) == (200, False)
        event = answer.body.rpartition(b"data: ")[2]
        assert json.loads(event)["error"]["code"] == "engine_not_ready"


@on_uvloop
@pytest.mark.parametrize("body", [WHOLE, STREAM[:-1], b'{"stream":"true"}'], ids=["whole", "no JSON", "text"])
async def test_what_is_no_stream_gets_nothing_before_its_answer(tmp_path: Path, body: bytes) -> None:
    async with Rig(tmp_path, hold=Hold(), tell_after=1e-9, generation=ScriptedEngine(script(REFUSED))) as rig:
        client = await asking(rig, body)
        wake(rig)
        assert (await client.response()).status == 400


@on_uvloop
async def test_a_wait_that_is_short_is_not_told(tmp_path: Path) -> None:
    async with Rig(tmp_path, hold=Hold(), tell_after=60, generation=ScriptedEngine(script(EVENTS))) as rig:
        client = await asking(rig, STREAM)
        wake(rig)
        assert (await client.response()).body == b'data: {"n":0}\n\ndata: [DONE]\n\n'
