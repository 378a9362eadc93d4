"""What the stub engine answers, in vLLM's shapes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.stub_engine import StubVllm
from tests.stub_engine.process import StartStub, body_of, requests_running

POOLING = ("--runner", "pooling")


async def test_text_depends_on_the_prompt_alone(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    async with process.http() as http:
        plain = await body_of(http.post("/v1/completions", json={"prompt": "a", "max_tokens": 4, "n": 2}))
        ask = {"prompt": "a", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
        async with http.post("/v1/completions", json=ask) as answer:
            assert answer.content_type == "text/event-stream"
            *events, done = (await answer.text()).removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    *chunks, usage = [json.loads(event.removeprefix("data: ")) for event in events]
    streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert [choice["text"] for choice in plain["choices"]] == [streamed, streamed]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert usage["usage"]["completion_tokens"] == 4


async def test_chat_answers_as_the_assistant(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    async with process.http() as http:
        answer = await body_of(
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        )
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"


async def test_embeddings_depend_on_the_input_alone(start_stub: StartStub) -> None:
    process = await start_stub(*POOLING).ready()
    async with process.http() as http:
        one = await body_of(http.post("/v1/embeddings", json={"input": "a"}))
        two = await body_of(http.post("/v1/embeddings", json={"input": ["b", "a"]}))
        packed = await body_of(http.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}))
    first = one["data"][0]["embedding"]
    assert sum(number**2 for number in first) == pytest.approx(1)
    assert two["data"][1]["embedding"] == first != two["data"][0]["embedding"]
    unpacked = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(unpacked) == pytest.approx(first)


async def test_routes_depend_on_the_runner(start_stub: StartStub) -> None:
    process = await start_stub(*POOLING).ready()
    async with process.http() as http:
        for path in ("/v1/completions", "/nothing"):
            async with http.post(path, json={"prompt": "a"}) as answer:
                assert answer.status == 404
                assert await answer.json() == {"detail": "Not Found"}
        async with http.get("/v1/embeddings") as answer:
            assert answer.status == 405


async def test_an_unknown_model_is_404_in_openais_shape(start_stub: StartStub) -> None:
    process = await start_stub("--served-model-name", "a", "b").ready()
    async with (
        process.http() as http,
        http.post("/v1/completions", json={"model": "c", "prompt": ""}) as answer,
    ):
        assert answer.status == 404
        assert (await answer.json())["error"] == {
            "message": "The model `c` does not exist. Valid aliases: a, b.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }


async def test_the_rest_of_the_api_is_there(start_stub: StartStub) -> None:
    process = await start_stub("--enable-request-id-headers").ready()
    async with process.http() as http:
        assert await body_of(http.get("/version")) == {"version": "0.32.0"}
        assert (await body_of(http.post("/tokenize", json={"prompt": "hello"})))["count"] == 5
        async with http.get("/health", headers={"X-Request-Id": "r1"}) as answer:
            assert answer.headers["X-Request-Id"] == "r1"
        async with http.get("/metrics") as answer:
            assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in await answer.text()
        async with http.post("/v1/completions", data=b"{") as answer:
            assert answer.status == 400


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_aborts_its_request(
    stub_vllm: StubVllm, start_stub: StartStub, stream: bool
) -> None:
    stub_vllm.set_faults(token_seconds=0.05)
    process = await start_stub().ready()
    async with process.http() as http:
        ask = {"prompt": "a", "max_tokens": 10_000, "stream": stream}
        headers = {"X-Request-Id": "r1"}
        asked = asyncio.ensure_future(body_of(http.post("/v1/completions", json=ask, headers=headers)))
        await requests_running(process, 1)
        asked.cancel()
        await asyncio.wait({asked})
    assert (await process.until("aborted")).detail == "r1"
    await requests_running(process, 0)


async def test_a_chunked_upload_is_read_and_the_connection_kept(start_stub: StartStub) -> None:
    process = await start_stub().ready()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        yield b'"a"}'

    async with process.http() as http:
        for _ in range(2):
            async with http.post("/v1/completions", data=body()) as answer:
                assert answer.status == 200


async def test_answers_can_be_cut_short(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    process = await start_stub().ready()
    await process.fault(cut_body=True)
    async with process.http() as http, http.post("/v1/completions", json={"prompt": "a"}) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_a_prefill_fills_the_cache_before_there_is_a_token(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    await process.fault(token_seconds=0.2, prefill_chunks=3)
    async with process.http() as http:
        answer = asyncio.create_task(
            body_of(http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}))
        )
        seen = set()
        while not answer.done():
            async with http.get("/metrics") as metrics:
                cache, tokens = re.findall(r"^vllm:(?:kv_cache_u|gen)\S+ (\S+)$", await metrics.text(), re.M)
                seen.add((float(cache), float(tokens)))
        assert (await answer)["usage"]["completion_tokens"] == 1
    assert {(0.0, 0.0), (0.01, 0.0), (0.02, 0.0), (0.03, 0.0)} <= seen


async def test_health_can_be_bad(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    await process.fault(health=500)
    async with process.http() as http, http.get("/health") as answer:
        assert answer.status == 500
