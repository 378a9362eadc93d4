"""Clients that leave, engines that die, and what the other side sees of it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path

import pytest

from memoria.config.model import Timeouts
from memoria.proxy.errors import Refusal
from memoria.vllm.facts import UnixAddress
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, answer_ok, on_uvloop

CHAT = b"/v1/chat/completions"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n":1}\n\n'
SSE_EVENT = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


async def hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.gone.wait()


async def die_before_the_head(asked: Asked) -> None:
    await asked.read_body()
    asked.writer.close()


async def stream_then_hang(asked: Asked) -> None:
    await asked.read_body()
    await asked.send(SSE + SSE_EVENT)
    await asked.gone.wait()


async def stream_then_die(asked: Asked) -> None:
    await asked.read_body()
    await asked.send(SSE + SSE_EVENT)
    asked.writer.close()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@on_uvloop
async def test_a_client_that_leaves_before_the_first_byte_aborts_its_request(
    tmp_path: Path, tcp: bool
) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, tcp=tcp, generation=engine) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        asked = await engine.arrivals.get()
        client.reset()
        await asked.gone.wait()
        record = await rig.ended.get()
    assert (record.status, record.complete, record.first_byte_s) == (499, False, None)


@on_uvloop
async def test_a_half_close_counts_as_leaving(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        asked = await engine.arrivals.get()
        client.writer.write_eof()
        await asked.gone.wait()


@on_uvloop
async def test_a_client_that_leaves_in_mid_stream_aborts_its_request(tmp_path: Path) -> None:
    engine = ScriptedEngine(stream_then_hang)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        await client.head()
        client.reset()
        await engine.asked[0].gone.wait()
        record = await rig.ended.get()
    assert (record.status, record.complete, record.response_bytes) == (200, False, len(EVENT))


@on_uvloop
async def test_a_client_that_leaves_while_it_uploads_aborts_its_request(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\n" + b"x" * 70_000
        )
        asked = await engine.arrivals.get()
        client.reset()
        await asked.gone.wait()
        assert (await rig.ended.get()).complete is False


@on_uvloop
async def test_a_client_that_leaves_before_its_body_reaches_no_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n")
        client.reset()
        assert (await rig.ended.get()).status == 499
        assert engine.connections == 0


@on_uvloop
async def test_an_engine_that_dies_before_its_head_is_a_502(tmp_path: Path) -> None:
    engine = ScriptedEngine(die_before_the_head)
    async with Rig(tmp_path, generation=engine) as rig:
        response = await rig.post(CHAT)
        assert len(engine.asked) == 1  # a generation is never asked for twice
    assert response.status == 502
    assert response.error == {
        "message": "Engine `generation` closed the connection before its response was complete",
        "type": "server_error",
        "param": None,
        "code": "engine_lost",
    }
    assert len(response.header(b"x-request-id")) == 1


@on_uvloop
async def test_a_pure_request_is_asked_once_more(tmp_path: Path) -> None:
    engine = ScriptedEngine(die_before_the_head, answer_ok)
    async with Rig(tmp_path, embedding=engine) as rig:
        response = await rig.post(b"/v1/embeddings", b'{"input":"x"}')
        assert rig.router.admitted == 2
    assert response.status == 200
    assert [asked.body for asked in engine.asked] == [b'{"input":"x"}'] * 2
    assert rig.exchanges[0].replays == 1


@on_uvloop
async def test_a_pure_request_is_not_asked_a_third_time(tmp_path: Path) -> None:
    engine = ScriptedEngine(die_before_the_head)
    async with Rig(tmp_path, embedding=engine) as rig:
        assert (await rig.post(b"/v1/embeddings")).error["code"] == "engine_lost"
    assert len(engine.asked) == 2


@on_uvloop
async def test_a_body_that_was_too_large_to_keep_is_not_asked_for_again(tmp_path: Path) -> None:
    engine = ScriptedEngine(die_before_the_head, answer_ok)
    async with Rig(tmp_path, embedding=engine) as rig:
        assert (await rig.post(b"/v1/embeddings", b"x" * (2**20 + 1))).status == 502


@on_uvloop
async def test_a_generation_that_its_engine_has_read_is_not_asked_for_twice(tmp_path: Path) -> None:
    """Not on a connection that was kept, either, and however soon the engine hangs up."""
    engine = ScriptedEngine(answer_ok, die_before_the_head, answer_ok)
    async with Rig(tmp_path, generation=engine) as rig:
        assert [(await rig.post(CHAT, b"%d" % n)).status for n in range(3)] == [200, 502, 200]
    assert [asked.body for asked in engine.asked] == [b"0", b"1", b"2"]
    assert engine.asked[0].connection == engine.asked[1].connection


@on_uvloop
async def test_idle_connections_to_an_engine_that_is_gone_are_not_used(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        await rig.post(CHAT)
        rig.pool.forget(rig.router.engines["generation"][2])
        await engine.asked[0].gone.wait()
        assert (await rig.post(CHAT)).status == 200
        assert engine.connections == 2


@on_uvloop
async def test_an_engine_that_is_not_there_is_a_502(tmp_path: Path) -> None:
    async with Rig(tmp_path, generation=ScriptedEngine()) as rig:
        rig.router.engines["generation"] = ("generate", ("m",), UnixAddress(str(tmp_path / "nobody.sock")))
        response = await rig.post(CHAT)
        assert rig.router.admitted == 2  # by then its address may be another
    assert (response.status, response.error["code"]) == (502, "engine_unreachable")


@on_uvloop
async def test_an_engine_that_does_not_accept_is_a_502_after_the_connect_timeout(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))
        async with Rig(tmp_path, timeouts=Timeouts(connect=0.05), generation=ScriptedEngine()) as rig:
            rig.router.engines["generation"] = ("generate", ("m",), UnixAddress(str(path)))
            assert (await rig.post(CHAT)).error["code"] == "engine_unreachable"


@on_uvloop
async def test_an_engine_that_dies_in_mid_stream_leaves_an_error_event_and_no_end(tmp_path: Path) -> None:
    async with Rig(tmp_path, generation=ScriptedEngine(stream_then_die)) as rig:
        response = await rig.post(CHAT)
    assert response.ended is False
    assert response.body.startswith(EVENT)
    last = response.body[len(EVENT) :]
    assert last.startswith(b"\n\ndata: {")
    assert last.endswith(b"}\n\n")
    assert json.loads(last[8:])["error"]["code"] == "engine_lost"
    assert b"[DONE]" not in response.body


@on_uvloop
async def test_what_an_engine_answers_when_it_is_to_stop_is_cut_and_said_so(tmp_path: Path) -> None:
    """A stream without an end, an embedding asked again, another engine's untouched."""
    generation, embedding = ScriptedEngine(stream_then_hang), ScriptedEngine(hang, answer_ok)
    async with Rig(tmp_path, generation=generation, embedding=embedding) as rig:
        stream, unanswered, neighbour = [await rig.client() for _ in range(3)]
        await stream.post(CHAT, b"{}")
        await generation.arrivals.get()
        generation.scripts = [hang]
        await unanswered.post(CHAT, b"{}")
        await generation.arrivals.get()
        await neighbour.post(b"/v1/embeddings", b"{}")
        await embedding.arrivals.get()

        rig.context.cut("generation")
        response = await stream.response()
        assert not response.ended
        assert json.loads(response.body.split(b"data: ")[-1])["error"]["code"] == "engine_stopping"
        response = await unanswered.response()
        assert (response.status, response.error["code"]) == (503, "engine_stopping")
        assert response.header(b"retry-after")
        for asked in generation.asked:
            await asked.gone.wait()

        assert not embedding.asked[0].gone.is_set()
        rig.context.cut("embedding")
        assert (await neighbour.response()).status == 200
        assert len(embedding.asked) == 2


@on_uvloop
async def test_the_error_event_stands_alone_after_half_an_event(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(SSE + b'8\r\ndata: {"\r\n')
        asked.writer.close()

    async with Rig(tmp_path, generation=ScriptedEngine(script)) as rig:
        response = await rig.post(CHAT)
    half, whole, rest = response.body.split(b"\n\n")
    assert (half, rest) == (b'data: {"', b"")
    assert json.loads(whole.removeprefix(b"data: "))["error"]["code"] == "engine_lost"


@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"])
@on_uvloop
async def test_an_engine_that_dies_in_a_json_body_leaves_no_false_end(
    tmp_path: Path, framing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + framing + b"\r\n\r\n5\r\n{....\r\n"
        )
        asked.writer.close()

    with caplog.at_level(logging.INFO):
        async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
            response = await rig.post(b"/v1/embeddings")
    assert response.ended is False
    assert b"error" not in response.body
    assert rig.exchanges[0].complete is False
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == [
        "memoria.proxy.exchange.exchange"
    ]


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 1000000"])
@on_uvloop
async def test_a_head_whose_body_makes_no_sense_is_a_502_while_nothing_was_sent(
    tmp_path: Path, framing: bytes
) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\nzz\r\n")
        await asked.gone.wait()

    async with Rig(tmp_path, client_idle=0.2, generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        if framing.startswith(b"content"):  # it was sent on
            assert (await client.head()).status == 200
            return
        response = await client.response()
        assert (response.status, response.error["code"]) == (502, "engine_garbled")
        assert (await rig.ended.get()).status == 502
        await client.post(CHAT, b"{}")
        assert (await client.response()).status == 502


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\na",
        b"HTTP/1.1 700 Odd\r\ncontent-length: 0\r\n\r\n",
    ],
)
@on_uvloop
async def test_a_response_that_is_no_http_is_a_502(tmp_path: Path, wire: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(wire)
        await asked.gone.wait()

    async with Rig(tmp_path, generation=ScriptedEngine(script)) as rig:
        response = await rig.post(CHAT)
    assert (response.status, response.error["code"]) == (502, "engine_garbled")


@on_uvloop
async def test_a_silent_engine_is_a_504_and_its_request_aborted(tmp_path: Path) -> None:
    engine = ScriptedEngine(hang)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0.1), generation=engine) as rig:
        response = await rig.post(CHAT)
        await engine.asked[0].gone.wait()
    assert (response.status, response.error["code"]) == (504, "engine_timeout")


@on_uvloop
async def test_a_stream_that_falls_silent_ends_with_an_error_event(tmp_path: Path) -> None:
    engine = ScriptedEngine(stream_then_hang)
    async with Rig(tmp_path, timeouts=Timeouts(idle=0.1), generation=engine) as rig:
        response = await rig.post(CHAT)
        await engine.asked[0].gone.wait()
    assert response.ended is False
    assert json.loads(response.body.split(b"data: ")[-1])["error"]["code"] == "engine_timeout"


@on_uvloop
async def test_silence_is_counted_between_bytes_and_not_over_the_stream(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(SSE)
        for _ in range(8):
            await asyncio.sleep(0.1)
            await asked.send(SSE_EVENT)
        await asked.send(b"0\r\n\r\n")

    async with Rig(tmp_path, timeouts=Timeouts(idle=0.5), generation=ScriptedEngine(script)) as rig:
        response = await rig.post(CHAT)
    assert (response.body, response.ended) == (EVENT * 8, True)


@on_uvloop
async def test_a_refusal_says_why_and_when_to_come_back(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        rig.router.refusal = Refusal(
            503, "generation is loading weights (62 %)", "engine_not_ready", retry_after=12
        )
        client = await rig.client()
        await client.post(CHAT, b"{}")
        response = await client.response()
        rig.router.refusal = None
        await client.post(CHAT, b"{}")
        assert (await client.response()).status == 200
    assert response.status == 503
    assert response.header(b"retry-after") == [b"12"]
    assert response.error == {
        "message": "generation is loading weights (62 %)",
        "type": "server_error",
        "param": None,
        "code": "engine_not_ready",
    }
