"""`/v1/realtime`: a WebSocket through the proxy, with a scripted engine at its other end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from memoria.config.model import Limits, Timeouts
from tests.integration.proxy_rig import Asked, Client, Rig, ScriptedEngine, answer_ok, on_uvloop

HANDSHAKE = (
    b"GET /v1/realtime%b HTTP/1.1\r\nhost: test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"authorization: Bearer x\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nserver: uvicorn\r\nset-cookie: a=b\r\n\r\n"
)


async def echo(asked: Asked) -> None:
    await asked.send(SWITCH + b"hello")
    while data := await asked.reader.read(65536):
        await asked.send(data)


async def opened(rig: Rig, query: bytes = b"") -> Client:
    client = await rig.client()
    await client.send(HANDSHAKE % query)
    return client


@on_uvloop
async def test_bytes_pass_both_ways_until_the_client_closes(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await opened(rig)
        head = await client.head()
        assert head.status == 101
        assert head.header(b"upgrade") == [b"websocket"]
        assert head.header(b"sec-websocket-accept") == [b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
        assert not head.header(b"set-cookie")
        assert await client.reader.readexactly(5) == b"hello"
        frames = b"\x81\x05world" * 50_000
        client.writer.write(frames)
        assert await client.reader.readexactly(len(frames)) == frames
        asked = engine.asked[0]
        assert asked.header(b"upgrade") == [b"websocket"]
        assert asked.header(b"sec-websocket-key") == [b"dGhlIHNhbXBsZSBub25jZQ=="]
        assert not asked.header(b"authorization")
        client.reset()
        await asyncio.wait_for(asked.gone.wait(), 10)
        record = await rig.ended.get()
        assert (record.status, record.engine, record.route) == (101, "generation", "/v1/realtime")
        assert record.response_bytes == 5 + len(frames)


@on_uvloop
async def test_what_the_client_says_before_the_answer_is_not_lost(tmp_path: Path) -> None:
    answer = asyncio.Event()

    async def late(asked: Asked) -> None:
        await answer.wait()
        await echo(asked)

    engine = ScriptedEngine(late)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(HANDSHAKE % b"" + b"early")
        await engine.arrivals.get()
        await client.send(b" bird")
        answer.set()
        assert (await client.head()).status == 101
        assert await client.reader.readexactly(15) == b"helloearly bird"


@on_uvloop
async def test_the_engine_closes(tmp_path: Path) -> None:
    async def bye(asked: Asked) -> None:
        await asked.send(SWITCH + b"bye")
        raise ConnectionError

    async with Rig(tmp_path, generation=ScriptedEngine(bye)) as rig:
        client = await opened(rig)
        assert (await client.head()).status == 101
        assert await client.closed() == b"bye"
        assert (await rig.ended.get()).complete


@on_uvloop
async def test_the_engine_declines(tmp_path: Path) -> None:
    async def no(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nno!\n")
        raise ConnectionError

    async with Rig(tmp_path, generation=ScriptedEngine(no)) as rig:
        client = await opened(rig)
        response = await client.response()
        assert (response.status, response.body) == (403, b"no!\n")
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 426 Upgrade Required\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nno",
    ],
    ids=["403", "in chunks", "200 with Upgrade"],
)
@on_uvloop
async def test_after_a_refused_handshake_the_engine_gets_no_bytes(tmp_path: Path, refusal: bytes) -> None:
    """They would be requests, of routes that memoria does not have."""
    smuggled = b"POST /sleep HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    refused = asyncio.Event()

    async def no(asked: Asked) -> None:
        await asked.send(refusal)
        await refused.wait()

    engine = ScriptedEngine(no, answer_ok)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(HANDSHAKE % b"" + smuggled)
        await engine.arrivals.get()
        response = await client.response()
        assert response.body == b"no"
        assert response.header(b"connection") == [b"close"]
        client.writer.write(smuggled)
        refused.set()
        assert await client.closed() == b""
        assert (await rig.post(b"/v1/completions")).status == 200  # on the same connection of the engine's
    assert [asked.line.split()[1] for asked in engine.asked] == [b"/v1/realtime", b"/v1/completions"]


@on_uvloop
async def test_hints_may_come_before_the_agreement(tmp_path: Path) -> None:
    async def hinting(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n")
        await echo(asked)

    async with Rig(tmp_path, generation=ScriptedEngine(hinting)) as rig:
        client = await opened(rig)
        head = await client.head()
        assert head.status == 101
        assert not head.header(b"link")
        await client.send(b" world")
        assert await client.reader.readexactly(11) == b"hello world"


@pytest.mark.parametrize(
    "framing", [b"content-length: 5", b"content-length: 0", b"transfer-encoding: chunked"]
)
@on_uvloop
async def test_a_handshake_with_a_length_or_a_body_is_refused(tmp_path: Path, framing: bytes) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send((HANDSHAKE % b"").replace(b"\r\n\r\n", b"\r\n" + framing + b"\r\n\r\n"))
        response = await client.response()
        assert (response.status, response.header(b"connection")) == (400, [b"close"])
    assert not engine.asked


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 1\x00 garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000]
)
@on_uvloop
async def test_an_engine_that_makes_no_sense_is_told_of(tmp_path: Path, said: bytes) -> None:
    async def nonsense(asked: Asked) -> None:
        await asked.send(said)
        raise ConnectionError

    async with Rig(tmp_path, generation=ScriptedEngine(nonsense)) as rig:
        response = await (await opened(rig)).response()
        assert response.status == 502
        assert response.error["code"] in {"engine_lost", "engine_garbled"}


@on_uvloop
async def test_only_a_handshake_is_taken(tmp_path: Path) -> None:
    engine = ScriptedEngine(echo)
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(b"GET /v1/realtime HTTP/1.1\r\nhost: test\r\n\r\n")
        response = await client.response()
        assert (response.status, response.error["code"]) == (426, "websocket_only")
        assert response.header(b"upgrade") == [b"websocket"]
    assert not engine.asked


@on_uvloop
async def test_of_several_engines_the_query_names_one(tmp_path: Path) -> None:
    first, second = ScriptedEngine(echo), ScriptedEngine(echo)
    async with Rig(tmp_path, first=first, second=second) as rig:
        client = await opened(rig, b"?model=second-alias")
        assert (await client.head()).status == 101
        assert second.asked[0].line == b"GET /v1/realtime?model=second-alias HTTP/1.1"
        unnamed = await (await opened(rig)).response()
        assert (unnamed.status, unnamed.error["code"]) == (400, "model_required")
        unknown = await (await opened(rig, b"?model=third")).response()
        assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    assert not first.asked


@on_uvloop
async def test_a_client_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    async def flood(asked: Asked) -> None:
        await asked.send(SWITCH)
        while True:
            await asked.send(b"x" * 65536)

    async with Rig(tmp_path, client_idle=0.2, limits=Limits(), generation=ScriptedEngine(flood)) as rig:
        client = await opened(rig)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        record = await asyncio.wait_for(rig.ended.get(), 20)
        assert not record.complete
        assert record.response_bytes < 50 * 2**20


@on_uvloop
async def test_an_engine_that_does_not_answer_the_handshake_is_a_504(tmp_path: Path) -> None:
    async def silent(asked: Asked) -> None:
        await asked.gone.wait()

    async with Rig(tmp_path, timeouts=Timeouts(idle=0.2), generation=ScriptedEngine(silent)) as rig:
        response = await (await opened(rig)).response()
        assert (response.status, response.error["code"]) == (504, "engine_timeout")
        assert rig.admission.load("generation").in_flight == 0


@on_uvloop
async def test_a_websocket_may_be_silent_for_long_and_ends_with_its_engine(tmp_path: Path) -> None:
    async with Rig(
        tmp_path, timeouts=Timeouts(idle=0.1), client_idle=0.1, generation=ScriptedEngine(echo)
    ) as rig:
        client = await opened(rig)
        assert (await client.head()).status == 101
        await asyncio.sleep(0.5)
        assert await client.reader.readexactly(5) == b"hello"
        await client.send(b"still here")
        assert await client.reader.readexactly(10) == b"still here"
        rig.context.cut("generation")
        assert await client.closed() == b""
