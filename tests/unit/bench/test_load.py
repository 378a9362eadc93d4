"""What of an answer `memoria bench` counts, and what it takes for a failure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from memoria.bench.figures import Phase, Times
from memoria.bench.load import (
    Endpoint,
    Engine,
    Load,
    Seen,
    TokenCount,
    embedding,
    generation,
    run_phase,
    run_phases,
)

OVER = web.AppKey("over", asyncio.Event)
EMBEDDER, WRITER = Engine("embedding", "e", "embedding"), Engine("generation", "g", "generation")
SHORT = Load(0.2, 0.05, streams=2, prompt_words=3, max_tokens=2, embedders=2, texts=2, text_words=3)


def event(tokens: int | None, finish: str | None = None) -> bytes:
    """As vLLM sends it with `continuous_usage_stats`, or without (None)."""
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 7, "completion_tokens": tokens}}
    choices = [{"index": 0, "text": 'a "completion_tokens":99 b', "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **usage})}\n\n".encode()


def test_the_tokens_of_an_event_share_the_time_since_the_one_before() -> None:
    seen = Seen(begin=0.0)
    count = TokenCount(seen, began=10.0)
    count.add_event(event(1), 10.5)
    count.add_event(event(4), 11.1)
    count.add_event(event(5), 11.2)
    count.add_event(event(5), 11.3)  # the last one, with the sum
    assert generation(WRITER, seen, 5.0).rate == 1.0
    assert seen.firsts == [0.5]
    assert seen.gaps == pytest.approx([0.2, 0.2, 0.2, 0.1])
    assert seen.prompts == [7]
    assert seen.counted


def test_where_tokens_are_not_told_events_are_counted_and_that_is_said() -> None:
    seen = Seen(begin=0.0)
    count = TokenCount(seen, began=0.0)
    for now in (1.0, 2.0, 4.0):
        count.add_event(event(None), now)
    assert (seen.tokens, seen.gaps, seen.counted) == (3, [1.0, 2.0], False)
    assert not generation(WRITER, seen, 1.0).counted


def test_what_happens_during_the_warm_up_is_not_counted() -> None:
    seen = Seen(begin=100.0)
    count = TokenCount(seen, began=98.0)
    count.add_event(event(1), 99.0)
    count.add_event(event(3), 99.5)
    assert (seen.tokens, seen.firsts, seen.gaps) == (0, [], [])
    count.add_event(event(4), 100.5)
    assert (seen.tokens, seen.gaps) == (1, [1.0])


def test_failures_of_the_warm_up_are_told() -> None:
    seen = Seen(begin=100.0)
    seen.fail("refused")
    seen.fail("something else")
    failed = embedding(EMBEDDER, seen, 1.0).failures
    assert (failed.count, failed.first) == (2, "refused")


Reply = Callable[[web.Request], AsyncIterator[bytes]]


async def test_a_stream_to_its_end_is_no_failure_and_has_its_figures() -> None:
    async def reply(_: web.Request) -> AsyncIterator[bytes]:
        for part in (event(1), event(2, "length"), event(2), b"data: [DONE]\n\n"):
            yield part

    phase = await loaded(reply, WRITER)
    (found,) = phase.generation
    assert phase.failures == 0, found
    assert found.rate > 0
    assert isinstance(found.first_token, Times)
    assert found.prompt_tokens == 7


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((event(1), event(1, "abort"), b"data: [DONE]\n\n"), '"finish_reason": "abort"'),
        ((event(1), b'data: {"error":{"message":"it died"}}\n\n', b"data: [DONE]\n\n"), "200: it died"),
        ((event(1),), "a stream broke off"),
        ((b"data: [DONE]\n\n",), "a stream without a token"),
    ],
)
async def test_a_stream_that_ends_otherwise_is_a_failure(parts: tuple[bytes, ...], reason: str) -> None:
    async def reply(_: web.Request) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    (found,) = (await loaded(reply, WRITER)).generation
    assert found.failures.count > 0
    assert reason in (found.failures.first or "")


async def test_fewer_vectors_than_texts_are_a_failure() -> None:
    async def reply(_: web.Request) -> AsyncIterator[bytes]:
        yield json.dumps({"data": [{"object": "embedding", "embedding": [0.1]}]}).encode()

    (found,) = (await loaded(reply, EMBEDDER)).embedding
    assert found.failures.count > 0
    assert found.rate == 0
    assert found.latency is None


async def test_an_engine_that_answers_nobody_has_failed() -> None:
    async def reply(request: web.Request) -> AsyncIterator[bytes]:
        yield b""
        await request.app[OVER].wait()

    (found,) = (await loaded(reply, WRITER)).generation
    assert found.failures.count == SHORT.streams
    assert (found.failures.first or "").startswith("no answer in 0.2")


async def test_each_engine_is_loaded_alone_then_all_together() -> None:
    async def reply(request: web.Request) -> AsyncIterator[bytes]:
        if request.path.endswith("embeddings"):
            vectors = [{"embedding": [0.1]}] * SHORT.texts
            yield json.dumps({"data": vectors, "usage": {"prompt_tokens": 10}}).encode()
        else:
            yield event(1) + event(2, "length") + b"data: [DONE]\n\n"

    second = Engine("second", "s", "embedding")
    ticks: list[tuple[str, float]] = []
    async with server(reply) as url:
        load = (EMBEDDER, WRITER, second)
        phases = [p async for p in run_phases(Endpoint(url), SHORT, load, lambda *tick: ticks.append(tick))]
    assert [phase.name for phase in phases] == [
        "embedding alone",
        "generation alone",
        "second alone",
        "together",
    ]
    assert [engine.engine for engine in phases[-1].engines] == ["embedding", "second", "generation"]
    assert all(phase.failures == 0 and engine.rate > 0 for phase in phases for engine in phase.engines)
    assert phases[0].embedding[0].text_tokens == 5
    assert ticks[-1] == ("together", 1.0)
    assert [part for _, part in ticks] == sorted(part for _, part in ticks)


async def loaded(reply: Reply, engine: Engine) -> Phase:
    async with server(reply) as url:
        return await run_phase("a phase", Endpoint(url), SHORT, [engine])


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in reply(request):
            await response.write(part)
        return response

    app = web.Application()
    app[OVER] = asyncio.Event()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        app[OVER].set()
        await runner.cleanup()
