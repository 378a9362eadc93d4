"""Requests that two servers may read differently, paths that hide, bodies that lie."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from memoria.config.model import Limits
from memoria.proxy.access.rules import AccessRules
from tests.faults import corpus
from tests.integration.proxy_rig import Rig, ScriptedEngine, on_uvloop, request

REFUSED = corpus.requests("refused")


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
@on_uvloop
async def test_an_ambiguous_request_is_a_400_and_never_a_request_to_an_engine(
    tmp_path: Path, wire: bytes
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(wire)
        assert (await client.response()).status == 400
        assert b"HTTP/1.1 200" not in await client.closed()
        assert all(asked.body == b"" for asked in engine.asked)
        assert not [asked for asked in engine.asked if asked.line.startswith(b"POST /v1/score")]


@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
@on_uvloop
async def test_nothing_is_asked_of_an_engine_after_a_refused_head(tmp_path: Path, wire: bytes) -> None:
    """Both come in one piece; the answer to the second could not be sent any more."""
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(wire + request(b"/v1/embeddings", b"{}", b"x-second: 1"))
        assert (await client.response()).status == 400
        await client.closed()
        assert (await rig.post(b"/v1/embeddings")).status == 200
        assert not [asked for asked in engine.asked if asked.header(b"x-second")]


@on_uvloop
async def test_an_absolute_target_is_forwarded_as_a_path_with_our_host(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST HTTP://T/v1/embeddings?a=b HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n{}"
        )
        assert (await client.response()).status == 200
        assert engine.asked[0].line == b"POST /v1/embeddings?a=b HTTP/1.1"
        assert engine.asked[0].header(b"host") == [b"localhost"]


@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/nowhere", b""], ids=["engines'", "own", "none"])
@pytest.mark.parametrize(
    "line",
    [
        b"POST http://evil%b HTTP/1.1",
        b"POST http://t:81%b HTTP/1.1",
        b"POST http://u@t%b HTTP/1.1",
        b"POST ftp://t%b HTTP/1.1",
        b"POST t:%b HTTP/1.1",
        b"POST http://t%b RTSP/1.0",
        b"POST http://t%b RTSP/1.1",
        b"OPTIONS http://t%b RTSP/1.0",
        b"SOURCE http://t%b ICE/1.0",
        b"POST http://t%b HTTP/0.9",
        b"POST http://t%b HTTP/2.0",
    ],
    ids=lambda line: line.replace(b"%b", b"").decode(),
)
@on_uvloop
async def test_a_request_to_another_host_or_in_another_protocol_is_refused(
    tmp_path: Path, line: bytes, path: bytes
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(line % path + b"\r\nhost: t\r\ncontent-length: 2\r\n\r\n{}")
        response = await client.response()
        assert (response.status, response.header(b"connection")) == (400, [b"close"])
        assert await client.closed() == b""
    assert not engine.asked


@pytest.mark.parametrize("target", [b"http://t/admin/status", b"/admin/status#a", b"http://t/admin/status?"])
@on_uvloop
async def test_however_a_target_is_written_access_sees_its_path(tmp_path: Path, target: bytes) -> None:
    """An origin that may use the engines may not use the admin API."""
    rules = AccessRules(frozenset((b"t",)), origins=frozenset((b"https://a.example",)))
    async with Rig(tmp_path, rules=rules, embedding=ScriptedEngine()) as rig:
        client = await rig.client()
        await client.send(b"GET " + target + b" HTTP/1.1\r\nhost: t\r\norigin: https://a.example\r\n\r\n")
        response = await client.response()
        assert (response.status, response.error["code"]) == (403, "origin_not_allowed")
        assert response.header(b"access-control-allow-origin") == []


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        ((b"application/json", b"application/json"), 200),
        ((b"application/json", b"text/plain"), 400),
        ((b"text/plain", b"application/json"), 400),
    ],
)
@on_uvloop
async def test_two_content_types_are_one_or_refused(
    tmp_path: Path, kinds: tuple[bytes, bytes], status: int
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        response = await rig.post(b"/v1/embeddings", b"{}", *(b"content-type: " + kind for kind in kinds))
        assert response.status == status
    assert len(engine.asked) == (status == 200)


@pytest.mark.parametrize("path", [b"/v1//embeddings", b"//v1/embeddings", b"/v1/embeddings/"])
@on_uvloop
async def test_a_slash_too_many_does_not_reach_an_engine(tmp_path: Path, path: bytes) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        assert (await rig.post(path + b"?a=//b/")).status == 200
        assert engine.asked[0].line == b"POST /v1/embeddings?a=//b/ HTTP/1.1"


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/%65mbeddings",
        b"/v1%2fembeddings",
        b"/v1/./embeddings",
        b"/v1/x/../embeddings",
        b"/v1/x/%2e%2e/embeddings",
        b"/v1\\embeddings",
        b"//v1//./embeddings/",
        b"//sleep/",
        b"/v1/embeddings;x",
        b"/V1/embeddings",
        b"/v1/embeddings%00",
        b"/sleep",
        b"/collective_rpc",
        b"/v1/load_lora_adapter",
        b"/metrics",
        b"*",
    ],
)
@on_uvloop
async def test_a_path_in_disguise_is_not_forwarded(tmp_path: Path, path: bytes) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.post(path, b"{}")
        assert (await client.response()).status in {400, 404}
        assert engine.asked == []


@on_uvloop
async def test_headers_that_are_not_for_an_engine_stay_here(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        await rig.post(
            b"/v1/embeddings",
            b"{}",
            b"connection: close, x-named",
            b"x-named: 1",
            b"te: trailers",
            b"upgrade: h2c",
            b"keep-alive: 1",
            b"proxy-authorization: a",
            b"proxy-connection: a",
            b"authorization: Bearer secret",
            b"cookie: a=b",
            b"forwarded: for=1",
            b"x-forwarded-for: 1",
            b"x-forwarded-host: 1",
            b"content_length: 5",
            b"x_under: 1",
            b"x-kept: 1",
        )
        lines = engine.asked[0].head.split(b"\r\n")[1:-2]
    assert [line.split(b":")[0] for line in lines] == [b"host", b"x-request-id", b"x-kept", b"content-length"]


@pytest.mark.parametrize("identity", [b"a" * 129, b"two words", b"caf\xe9", b""])
@on_uvloop
async def test_an_odd_request_id_is_replaced(tmp_path: Path, identity: bytes) -> None:
    async with Rig(tmp_path, embedding=ScriptedEngine()) as rig:
        response = await rig.post(b"/v1/embeddings", b"{}", b"x-request-id: " + identity)
    (answered,) = response.header(b"x-request-id")
    assert answered != identity
    assert len(answered) == 32


@on_uvloop
async def test_a_body_declared_too_large_is_a_413_at_once(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, limits=Limits(body_bytes=1000), embedding=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 1001\r\n\r\n")
        response = await client.response()
        assert response.status == 413
        assert response.error == {
            "message": "The request body is larger than 1000 bytes (`limits.body_mb`)",
            "type": "invalid_request_error",
            "param": None,
            "code": "body_too_large",
        }
        assert response.header(b"connection") == [b"close"]
        assert engine.connections == 0


@on_uvloop
async def test_a_chunked_body_is_counted_while_it_streams(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, limits=Limits(body_bytes=100_000), embedding=engine) as rig:
        client = await rig.client()
        await client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.send(b"13880\r\n%b\r\n" % (b"x" * 80_000))
        asked = await engine.arrivals.get()
        await client.send(b"13880\r\n%b\r\n" % (b"x" * 80_000))
        assert (await client.response()).status == 413
        await asked.gone.wait()


@on_uvloop
async def test_the_largest_body_allowed_passes(tmp_path: Path) -> None:
    async with Rig(tmp_path, limits=Limits(body_bytes=1000), embedding=ScriptedEngine()) as rig:
        assert (await rig.post(b"/v1/embeddings", b"x" * 1000)).status == 200


H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEA\r\n"


@pytest.mark.parametrize("size", [2, 200_000], ids=["small", "large"])
@pytest.mark.parametrize("cuts", [(), (60,), (60, 190, 250)], ids=["whole", "cut", "in pieces"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@on_uvloop
async def test_an_offer_of_http_2_is_ignored(
    tmp_path: Path, size: int, cuts: tuple[int, ...], chunked: bool
) -> None:
    """Java's own client makes it with every request (RFC 9110 7.8: an offer may be ignored)."""
    body = b"x" * size
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % size
    wire = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n%b%b\r\n\r\n%b" % (H2C, framing, framed)
    engine = ScriptedEngine()
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        for begin, end in pairwise((0, *cuts, len(wire))):
            await client.send(wire[begin:end])
            await asyncio.sleep(0)
        assert (await client.response()).status == 200
        assert await client.closed() == b""
    (asked,) = engine.asked
    assert asked.body == body
    assert not asked.header(b"upgrade")
    assert not asked.header(b"http2-settings")


@on_uvloop
async def test_what_comes_after_the_body_of_a_declined_upgrade_is_no_second_request(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    second = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n{}"
    async with Rig(tmp_path, embedding=engine) as rig:
        client = await rig.client()
        await client.send(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n%bcontent-length: 2\r\n\r\n{}%b" % (H2C, second)
        )
        assert (await client.response()).status == 200
        assert await client.closed() == b""
    assert len(engine.asked) == 1


@pytest.mark.parametrize("framing", [b"content-length: 2", b"transfer-encoding: chunked"])
@on_uvloop
async def test_a_handshake_has_no_body(tmp_path: Path, framing: bytes) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        await client.send(
            b"GET /v1/realtime HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            + framing
            + b"\r\n\r\n{}"
        )
        assert (await client.response()).status == 400
    assert engine.asked == []
