"""Requests and responses that go well, byte by byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memoria.config.model import Limits
from tests.integration.proxy_rig import (
    JSON_OK,
    Asked,
    Rig,
    ScriptedEngine,
    answer_ok,
    on_uvloop,
    request,
)

CHAT = b"/v1/chat/completions"


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@on_uvloop
async def test_a_request_reaches_the_engine_and_its_answer_the_client(tmp_path: Path, tcp: bool) -> None:
    async with Rig(tmp_path, tcp=tcp, generation=ScriptedEngine()) as rig:
        response = await rig.post(
            CHAT + b"?a=1&b=%20", b'{"model":"x"}', b"x-custom: kept", b"accept-encoding: gzip"
        )
        asked = rig._engines["generation"].asked[0]
    assert (response.status, response.body, response.ended) == (200, b'{"ok":true}', True)
    assert asked.line == b"POST /v1/chat/completions?a=1&b=%20 HTTP/1.1"
    assert asked.body == b'{"model":"x"}'
    assert asked.header(b"host") == [b"localhost"]
    assert asked.header(b"content-length") == [b"13"]
    assert asked.header(b"x-custom") == [b"kept"]
    assert asked.header(b"accept-encoding") == [b"gzip"]
    record = rig.exchanges[0]
    assert (record.engine, record.route, record.status) == ("generation", CHAT.decode(), 200)
    assert (record.response_bytes, record.complete, record.replays) == (11, True, 0)
    assert record.first_byte_s is not None
    assert 0 <= record.first_byte_s <= record.duration_s


@on_uvloop
async def test_a_trace_goes_on_as_it_came(tmp_path: Path) -> None:
    """The W3C's trace context and baggage: vLLM reads them, memoria does not touch them."""
    trace = {
        b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"tracestate": b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        b"baggage": b"user=alice%20b;prop=1, k=v",
    }
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        await rig.post(CHAT, b"{}", *(name + b": " + value for name, value in trace.items()))
    assert {name: engine.asked[0].header(name) for name in trace} == {n: [v] for n, v in trace.items()}


@on_uvloop
async def test_one_connection_to_the_engine_serves_many_requests(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for _ in range(5):
            await client.post(b"/v1/embeddings", b"{}")
            assert (await client.response()).status == 200
        assert (engine.connections, len(engine.asked)) == (1, 5)


@on_uvloop
async def test_the_latest_idle_connection_is_used_first(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        await asyncio.gather(*(rig.post(b"/v1/embeddings") for _ in range(3)))
        opened = engine.connections
        last = engine.asked[-1].connection
        for _ in range(3):
            await rig.post(b"/v1/embeddings")
        assert engine.connections == opened
        assert {asked.connection for asked in engine.asked[-3:]} == {last}


@on_uvloop
async def test_a_connection_that_nobody_uses_is_closed(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, idle_s=0.05, embedding=engine) as rig:
        await asyncio.gather(*(rig.post(b"/v1/embeddings") for _ in range(3)))
        for asked in engine.asked:
            await asked.gone.wait()
        assert repr(rig.pool) == "<Pool idle {}>"
        assert (await rig.post(b"/v1/embeddings")).status == 200


@on_uvloop
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def echo(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(asked.body), asked.body))

    async with Rig(tmp_path, embedding=ScriptedEngine(echo)) as rig:
        client = await rig.client()
        await client.send(b"".join(request(b"/v1/embeddings", b"body %d" % n) for n in range(4)))
        assert [(await client.response()).body for _ in range(4)] == [b"body %d" % n for n in range(4)]


@on_uvloop
async def test_an_event_stream_passes_byte_by_byte_whatever_its_chunks(tmp_path: Path) -> None:
    stream = b"".join(b'data: {"n":%d,"t":"\xc3\xa9"}\n\n' % n for n in range(40)) + b"data: [DONE]\n\n"

    async def script(asked: Asked) -> None:
        await asked.read_body()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        pieces = [stream[at : at + 7] for at in range(0, len(stream), 7)]
        wire = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        for at in range(0, len(wire), 11):  # also in the middle of chunk sizes and of characters
            await asked.send(wire[at : at + 11])
            await asyncio.sleep(0)

    async with Rig(tmp_path, generation=ScriptedEngine(script)) as rig:
        response = await rig.post(CHAT)
        assert (await rig.ended.get()).streamed
    assert (response.body, response.ended) == (stream, True)
    assert response.header(b"content-type") == [b"text/event-stream"]
    assert response.header(b"transfer-encoding") == [b"chunked"]


@on_uvloop
async def test_an_event_leaves_when_it_arrives(tmp_path: Path) -> None:
    proceed = asyncio.Queue[bytes]()

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        while event := await proceed.get():
            await asked.send(b"%x\r\n%b\r\n" % (len(event), event))
        await asked.send(b"0\r\n\r\n")

    async with Rig(tmp_path, generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        assert (await client.head()).status == 200
        for number in range(5):
            event = b"data: %d\n\n" % number
            proceed.put_nowait(event)
            assert await client.reader.readexactly(len(event) + 5) == b"%x\r\n%b\r\n" % (len(event), event)
        proceed.put_nowait(b"")
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


@on_uvloop
async def test_a_chunked_upload_is_framed_again_exactly_once(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.send(b"11170\r\n%b\r\n" % (b"a" * 70_000))
        asked = await engine.arrivals.get()
        assert asked.header(b"transfer-encoding") == [b"chunked"]
        assert asked.header(b"content-length") == []
        await client.send(b"4\r\ndefg\r\n0\r\n\r\n")
        assert (await client.response()).status == 200
        assert asked.body == b"a" * 70_000 + b"defg"


@on_uvloop
async def test_a_short_chunked_upload_is_whole_before_it_leaves(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await client.send(b"4\r\ndefg\r\n0\r\n\r\n")
        assert (await client.response()).status == 200
    assert engine.asked[0].header(b"content-length") == [b"7"]
    assert engine.asked[0].body == b"abcdefg"


@on_uvloop
async def test_a_large_upload_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 32768  # 8 MiB
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        response = await rig.post(
            b"/v1/audio/transcriptions", body, b"content-type: multipart/form-data; boundary=x"
        )
        assert response.status == 200
        assert engine.asked[0].body == body
        assert engine.asked[0].header(b"content-length") == [str(len(body)).encode()]


@on_uvloop
async def test_a_large_response_arrives_whole(tmp_path: Path) -> None:
    body = bytes(range(256)) * 20480  # 5 MiB

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        assert (await rig.post(b"/v1/embeddings")).body == body


@on_uvloop
async def test_expect_100_continue_gets_its_continue(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert (await client.head()).status == 100
        await client.send(b"{}")
        assert (await client.response()).status == 200
        assert engine.asked[0].header(b"expect") == []


@on_uvloop
async def test_a_refused_upload_is_not_asked_for(tmp_path: Path) -> None:
    async with Rig(tmp_path, limits=Limits(body_bytes=10), generation=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 20\r\n\r\n"
        )
        assert (await client.response()).status == 413


@on_uvloop
async def test_an_http_1_0_client_is_served_and_its_connection_closed(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/embeddings HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
        assert (await client.response()).body == b'{"ok":true}'
        assert await client.closed() == b""


@on_uvloop
async def test_interim_responses_are_passed_over(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        await answer_ok(asked)

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        response = await rig.post(b"/v1/embeddings")
    assert (response.status, response.header(b"link")) == (200, [])


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 N\r\ncontent-length: 5\r\n\r\n"]
)
@on_uvloop
async def test_a_response_without_a_body_ends_with_its_head(tmp_path: Path, head: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(head)

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.post(b"/v1/embeddings", b"{}")
            assert (await client.head()).status in {204, 304}
        assert engine.connections == 1


@on_uvloop
async def test_a_response_may_end_with_its_connection(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nto the end")
        asked.writer.close()

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        response = await rig.post(b"/v1/embeddings")
    assert (response.body, response.ended) == (b"to the end", True)


@on_uvloop
async def test_trailers_do_not_become_headers(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-late\r\n\r\n")
        await asked.send(b"1\r\na\r\n0\r\nx-late: b\r\n\r\n")

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        response = await rig.post(b"/v1/embeddings")
    assert (response.body, response.ended, response.header(b"x-late")) == (b"a", True, [])


@pytest.mark.parametrize(
    "wire",
    [JSON_OK + b"junk", JSON_OK + JSON_OK, JSON_OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n", 1)],
    ids=["junk", "second response", "close"],
)
@on_uvloop
async def test_a_connection_with_a_doubtful_end_is_not_used_again(tmp_path: Path, wire: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(wire)

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for number in (1, 2):
            await client.post(b"/v1/embeddings", b"{}")
            assert (await client.response()).body == b'{"ok":true}'
            assert engine.connections == number


@on_uvloop
async def test_an_early_response_is_relayed_while_the_upload_goes_on(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")
        await asked.gone.wait()

    engine = ScriptedEngine(script, answer_ok)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 200000\r\n\r\n" + b"x" * 99995
        )
        assert (await client.response()).body == b"no"
        await engine.asked[0].gone.wait()  # half a request was written: not for reuse
        await client.send(b"x" * 100005 + request(b"/v1/completions", b"{}"))
        assert (await client.response()).body == b'{"ok":true}'


@on_uvloop
async def test_a_get_by_id_has_no_body(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(request(b"/v1/responses/resp_1?stream=true", method=b"GET"))
        assert (await client.response()).status == 200
        assert engine.asked[0].line == b"GET /v1/responses/resp_1?stream=true HTTP/1.1"
        assert engine.asked[0].header(b"content-length") == []


@on_uvloop
async def test_headers_that_are_not_for_the_client_stay_here(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 200 OK\r\nDate: today\r\nServer: uvicorn\r\nSet-Cookie: a=b\r\nX-Request-Id: its\r\n"
            b"Connection: x-inner\r\nX-Inner: 1\r\nX-Kept: 1\r\nX-Kept: 2\r\nContent-Length: 0\r\n\r\n"
        )

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        response = await rig.post(b"/v1/embeddings", b"{}", b"x-request-id: mine")
    assert response.headers == [
        (b"date", b"today"),
        (b"x-kept", b"1"),
        (b"x-kept", b"2"),
        (b"content-length", b"0"),
        (b"x-request-id", b"mine"),
    ]


@on_uvloop
async def test_a_request_id_is_made_where_there_is_none(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        response = await rig.post(b"/v1/embeddings")
        (identity,) = response.header(b"x-request-id")
        assert engine.asked[0].header(b"x-request-id") == [identity]
        assert (await rig.post(b"/nowhere")).header(b"x-request-id") != [identity]
        assert rig.exchanges[0].request_id == identity.decode()
