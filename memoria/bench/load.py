"""The clients: each asks, waits for the answer, and asks again."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from memoria.bench.figures import Embedding, Generation, Phase, percentiles, times

LONGEST_REQUEST = 600.0  # seconds
# Ordinary words: about a token each with any tokenizer.
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "thing",
    "life",
    "child",
    "world",
    "school",
    "state",
    "group",
)


@dataclass(frozen=True, slots=True)
class Load:
    """Clients of each kind, and what a request of theirs holds. `warm_up` and `seconds` are those of a phase:
    what happens in the first is not counted."""

    seconds: float
    warm_up: float
    streams: int
    prompt_words: int
    max_tokens: int
    embedders: int
    texts: int
    text_words: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon; `headers` may hold an API key."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    model: str


@dataclass(slots=True)
class _Seen:
    """What the clients of a phase saw after its warm-up."""

    begin: float
    texts: int = 0
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: int = 0
    failure: str | None = None

    def fail(self, reason: str) -> None:
        self.failures += 1
        self.failure = self.failure or reason


async def run_phase(
    name: str,
    endpoint: Endpoint,
    load: Load,
    *,
    embedding: Engine | None,
    generation: Engine | None,
    tick: Callable[[float], None] = lambda _: None,
) -> Phase:
    """Loads one engine, or both. `tick` is told now and then how much of the phase is over (0 to 1). A failed
    request is counted, and its client goes on after a moment."""
    seen = _Seen(time.perf_counter() + load.warm_up)
    whole = load.warm_up + load.seconds
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=LONGEST_REQUEST)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=dict(endpoint.headers)
    ) as session:
        clients: list[asyncio.Task[None]] = []
        if embedding:
            clients += _start(load.embedders, lambda: _embed(session, endpoint, embedding, load, seen), seen)
        if generation:
            clients += _start(
                load.streams, lambda: _generate(session, endpoint, generation, load, seen), seen
            )
        began = time.perf_counter()
        try:
            while (gone := time.perf_counter() - began) < whole:
                tick(gone / whole)
                await asyncio.sleep(min(0.1, whole - gone))
            seconds = time.perf_counter() - seen.begin
            figures = _phase(name, seconds, seen, embedding, generation)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    tick(1.0)
    return figures


def _phase(
    name: str, seconds: float, seen: _Seen, embedding: Engine | None, generation: Engine | None
) -> Phase:
    return Phase(
        name,
        seconds,
        Embedding(embedding.name, seen.texts / seconds, times(seen.latencies)) if embedding else None,
        Generation(
            generation.name,
            seen.tokens / seconds,
            times(seen.firsts),
            times(seen.gaps),
            percentiles(seen.gaps),
        )
        if generation
        else None,
        seen.failures,
        seen.failure,
    )


def _start(count: int, ask: Callable[[], Awaitable[None]], seen: _Seen) -> list[asyncio.Task[None]]:
    async def client() -> None:
        while True:
            try:
                await ask()
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                seen.fail(str(error) or type(error).__name__)
                await asyncio.sleep(0.2)

    return [asyncio.create_task(client()) for _ in range(count)]


async def _embed(
    session: aiohttp.ClientSession, endpoint: Endpoint, engine: Engine, load: Load, seen: _Seen
) -> None:
    body = {"model": engine.model, "input": [_text(load.text_words) for _ in range(load.texts)]}
    began = time.perf_counter()
    async with session.post(f"{endpoint.url}/v1/embeddings", json=body) as answer:
        found = await answer.read()
    if answer.status != 200 or found.count(b'"embedding":') + found.count(b'"embedding" :') < load.texts:
        raise ValueError(_refusal(answer.status, found))
    ended = time.perf_counter()
    if ended >= seen.begin:
        seen.texts += load.texts
        seen.latencies.append(ended - began)


async def _generate(
    session: aiohttp.ClientSession, endpoint: Endpoint, engine: Engine, load: Load, seen: _Seen
) -> None:
    """One stream. Tokens are counted as events: vLLM sends one for each step of a request."""
    body = {
        "model": engine.model,
        "prompt": _text(load.prompt_words),
        "max_tokens": load.max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    before, first = time.perf_counter(), True
    async with session.post(f"{endpoint.url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise ValueError(_refusal(answer.status, await answer.read()))
        async for line in answer.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            if line.startswith(b'data: {"error"'):
                raise ValueError(_refusal(answer.status, line[6:]))
            now = time.perf_counter()
            if now >= seen.begin:
                seen.tokens += 1
                (seen.firsts if first else seen.gaps).append(now - before)
            before, first = now, False
    if first:
        raise ValueError("a stream without a token")


def _text(words: int) -> str:
    """Never twice the same, so that no cache of prefixes answers."""
    return f"{random.getrandbits(64):x} " + " ".join(random.choices(WORDS, k=words))


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:200].decode(errors='replace')}"
