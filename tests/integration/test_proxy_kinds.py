"""Kinds of addresses, codings and methods that a request may come with."""

from __future__ import annotations

import asyncio
import gzip
import time
from pathlib import Path

import pytest

from memoria.admin.telemetry.requests import tokens
from memoria.proxy.http.messages import END_BYTES
from memoria.vllm.facts import EngineAddress, TcpAddress
from tests.integration.proxy_rig import Asked, EngineProtocol, Rig, ScriptedEngine, on_uvloop, request

CHAT = b"/v1/chat/completions"


@on_uvloop
async def test_a_client_in_ipv6_is_served_as_any_other(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, host="::1", embedding=engine) as rig:
        response = await rig.post(b"/v1/embeddings", b"{}")
    assert (response.status, engine.asked[0].body) == (200, b"{}")
    assert rig.exchanges[0].client == "::1"


@on_uvloop
async def test_an_engine_in_ipv6_is_asked_as_any_other(tmp_path: Path) -> None:
    class There(ScriptedEngine):
        async def listen(self, where: Path | None) -> EngineAddress:
            server = await asyncio.get_running_loop().create_server(lambda: EngineProtocol(self), "::1", 0)
            self._server = server
            return TcpAddress("::1", server.sockets[0].getsockname()[1])

    async with Rig(tmp_path, embedding=There()) as rig:
        assert [(await rig.post(b"/v1/embeddings")).body for _ in range(2)] == [b'{"ok":true}'] * 2


@pytest.mark.parametrize("framing", ["length", "chunked", "events"])
@on_uvloop
async def test_what_is_compressed_passes_untouched_both_ways(tmp_path: Path, framing: str) -> None:
    """memoria neither opens it nor adds to it; not even the word of an error to a stream it cannot read."""
    packed = gzip.compress(b'{"input":"' + b"text " * 1000 + b'"}', mtime=0)

    async def script(asked: Asked) -> None:
        await asked.read_body()
        kind = b"text/event-stream" if framing == "events" else b"application/json"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ncontent-encoding: gzip\r\n"
        if framing == "length":
            await asked.send(head + b"content-length: %d\r\n\r\n" % len(packed) + packed)
            return
        await asked.send(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(packed), packed))
        if framing == "events":
            raise ConnectionError  # it dies
        await asked.send(b"0\r\n\r\n")

    engine = ScriptedEngine(script)
    async with Rig(tmp_path, embedding=engine) as rig:
        response = await rig.post(
            b"/v1/embeddings", packed, b"content-encoding: gzip", b"accept-encoding: gzip"
        )
    assert (engine.asked[0].body, engine.asked[0].header(b"content-encoding")) == (packed, [b"gzip"])
    assert (response.body, response.header(b"content-encoding")) == (packed, [b"gzip"])
    assert response.ended is (framing != "events")


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"GET", b"PUT", b"DELETE", b"PATCH", b"TRACE"])
@on_uvloop
async def test_methods_that_a_route_does_not_have_are_a_405_that_names_those_it_has(
    tmp_path: Path, method: bytes
) -> None:
    engine = ScriptedEngine()
    async with Rig(tmp_path, generation=engine) as rig:
        client = await rig.client()
        for _ in range(2):  # and the connection stays
            await client.send(request(CHAT, method=method))
            response = await (client.head() if method == b"HEAD" else client.response())
            assert (response.status, response.header(b"allow")) == (405, [b"POST"])
        await client.post(CHAT, b"{}")
        assert (await client.response()).status == 200
    assert len(engine.asked) == 1


@pytest.mark.parametrize("apart", [False, True], ids=["head and body at once", "head alone first"])
@on_uvloop
async def test_tokens_are_found_at_an_answers_begin_too(tmp_path: Path, apart: bool) -> None:
    """vLLM's rerank says what was used before its results (RerankResponse)."""
    body = b'{"id":"r","usage":{"prompt_tokens":7,"total_tokens":7},"results":[%b]}' % (
        b"9," * 100_000 + b"9"
    )

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[: 0 if apart else 40]
        )
        for _ in range(5 if apart else 0):  # the proxy, in the same loop, has read the head
            await asyncio.sleep(0)
        await asked.send(body[0 if apart else 40 :])

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        assert (await rig.post(b"/v1/rerank", b"{}")).body == body
        assert tokens(rig.exchanges[0].ends) == (7, None)
        assert len(rig.exchanges[0].ends) <= 2 * END_BYTES


@on_uvloop
async def test_the_first_byte_is_the_bodys_for_a_head_says_nothing_yet(tmp_path: Path) -> None:
    """vLLM sends the head of a stream before its first token."""
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await go.wait()
        await asked.send(b"8\r\ndata: 1\n\r\n0\r\n\r\n")

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        client = await rig.client()
        await client.post(b"/v1/embeddings", b"{}")
        assert (await client.head()).status == 200
        headed = time.monotonic()
        await asyncio.sleep(0.05)  # the time that is measured
        waited = time.monotonic() - headed
        go.set()
        await rig.ended.get()
        (record,) = rig.exchanges
        assert record.first_byte_s is not None
        assert record.first_byte_s > waited


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
)
@on_uvloop
async def test_without_a_body_the_first_byte_is_the_heads(tmp_path: Path, head: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(head)

    async with Rig(tmp_path, embedding=ScriptedEngine(script)) as rig:
        await rig.post(b"/v1/embeddings")
        await rig.ended.get()
        assert rig.exchanges[0].first_byte_s is not None


@on_uvloop
async def test_a_head_whose_body_never_comes_is_answered_by_memoria(tmp_path: Path) -> None:
    """Nothing of it was sent yet, so the client is told, and nobody counts it as an engine's answer."""

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        raise ConnectionError  # it dies

    async with Rig(tmp_path, generation=ScriptedEngine(script)) as rig:
        response = await rig.post(b"/v1/completions")
        assert (response.status, response.error["code"]) == (502, "engine_lost")
        await rig.ended.get()
        assert (rig.exchanges[0].status, rig.exchanges[0].first_byte_s) == (502, None)
