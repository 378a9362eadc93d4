"""A load for a running daemon: clients that send a request, wait for the answer, and send the next one."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from memoria.bench.figures import Embedding, Failures, Generation, Phase, mean, percentiles, times

ALONE, TOGETHER = "{} alone", "together"
AFTER_FAILURE = 0.2  # seconds
TICK = 0.1  # seconds
# Ordinary words, about one token each with any tokenizer.
WORDS = ("time", "year", "people", "way", "day", "thing", "life", "child", "world", "school", "state")

_VECTOR = re.compile(rb'"embedding"\s?:')
_MADE = re.compile(rb'"completion_tokens":\s?(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s?(\d+)')
_BROKEN_OFF = re.compile(rb'"finish_reason":\s?"(?:abort|error)"')


@dataclass(frozen=True, slots=True)
class Load:
    """Clients of each kind, and the size of their requests. `warm_up` and `seconds` are those of a phase;
    nothing is counted during the warm-up."""

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
    """A daemon's URL; `headers` may hold an API key. `sha256`: its certificate's, in hex, instead of a name
    and a CA to verify it by."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    model: str
    kind: Literal["embedding", "generation"]


@dataclass(slots=True)
class Seen:
    """What the clients of one engine measured since `begin` (`time.perf_counter`). Failures count from the
    first request on, also during the warm-up."""

    begin: float
    answers: int = 0  # complete ones, of either kind
    latencies: list[float] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    counted: bool = True
    prompts: list[float] = field(default_factory=list)
    failures: int = 0
    failure: str | None = None

    def fail(self, reason: str, count: int = 1) -> None:
        self.failures += count
        self.failure = self.failure or reason

    def close(self, seconds: float, clients: int) -> None:
        """Ends the measurement. No answer at all must not look like success."""
        if not (self.answers or self.tokens or self.failures):
            self.fail(f"no answer in {seconds:.3g} s", clients)


def embedding(engine: Engine, seen: Seen, seconds: float) -> Embedding:
    failed = Failures(seen.failures, seen.failure)
    return Embedding(
        engine.name, seen.texts / seconds, mean(seen.prompts), times(seen.latencies), failures=failed
    )


def generation(engine: Engine, seen: Seen, seconds: float) -> Generation:
    return Generation(
        engine.name,
        seen.tokens / seconds,
        mean(seen.prompts),
        times(seen.firsts),
        times(seen.gaps),
        percentiles(seen.gaps),
        seen.counted,
        Failures(seen.failures, seen.failure),
    )


async def run_phases(
    endpoint: Endpoint,
    load: Load,
    engines: Sequence[Engine],
    tick: Callable[[str, float], None] = lambda _, __: None,
) -> AsyncIterator[Phase]:
    """Loads each engine alone, then, if there are several, all together. `tick` gets the phase and the part
    of all phases that is over (0 to 1)."""
    wanted: list[tuple[str, tuple[Engine, ...]]] = [
        (ALONE.format(engine.name), (engine,)) for engine in engines
    ]
    if len(engines) > 1:
        wanted.append((TOGETHER, tuple(engines)))
    for number, (name, loaded) in enumerate(wanted):

        def share(part: float, name: str = name, number: int = number) -> None:
            tick(name, (number + part) / len(wanted))

        yield await run_phase(name, endpoint, load, loaded, share)


async def run_phase(
    name: str,
    endpoint: Endpoint,
    load: Load,
    engines: Sequence[Engine],
    tick: Callable[[float], None] = lambda _: None,
) -> Phase:
    """Loads these engines. `tick` gets the part of the phase that is over (0 to 1). After a failed request,
    which is counted, its client goes on in a moment; requests in flight at the end are abandoned."""
    began = time.perf_counter()
    whole = load.warm_up + load.seconds
    seen = {engine: Seen(began + load.warm_up) for engine in engines}
    pinned = aiohttp.Fingerprint(bytes.fromhex(endpoint.sha256)) if endpoint.sha256 else True
    connector = aiohttp.TCPConnector(limit=0, ssl=pinned)
    timeout = aiohttp.ClientTimeout(total=None)  # the end of the phase ends every request
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=dict(endpoint.headers)
    ) as session:
        tasks = [
            asyncio.create_task(_client(session, endpoint.url, engine, load, seen[engine]))
            for engine in engines
            for _ in range(_clients(engine, load))
        ]
        try:
            while (gone := time.perf_counter() - began) < whole:
                tick(gone / whole)
                await asyncio.sleep(min(TICK, whole - gone))
            phase = _phase(name, load, seen, time.perf_counter() - began - load.warm_up)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    tick(1.0)
    return phase


def _clients(engine: Engine, load: Load) -> int:
    return load.embedders if engine.kind == "embedding" else load.streams


def _phase(name: str, load: Load, seen: dict[Engine, Seen], seconds: float) -> Phase:
    for engine, one in seen.items():
        one.close(load.warm_up + seconds, _clients(engine, load))
    return Phase(
        name,
        seconds,
        tuple(embedding(e, one, seconds) for e, one in seen.items() if e.kind == "embedding"),
        tuple(generation(e, one, seconds) for e, one in seen.items() if e.kind == "generation"),
    )


async def _client(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    send = embed if engine.kind == "embedding" else generate
    while True:
        try:
            await send(session, url, engine, load, seen)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            seen.fail(str(error) or type(error).__name__)
            await asyncio.sleep(AFTER_FAILURE)


async def embed(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    """Sends one request. Raises `ValueError` unless the answer holds every embedding."""
    body = {"model": engine.model, "input": [_text(load.text_words) for _ in range(load.texts)]}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/embeddings", json=body) as answer:
        found = await answer.read()
    ended = time.perf_counter()
    if answer.status != 200 or len(_VECTOR.findall(found)) != load.texts:
        raise ValueError(_refusal(answer.status, found))
    seen.answers += 1
    if ended >= seen.begin:
        seen.texts += load.texts
        seen.latencies.append(ended - began)
        if prompt := _PROMPT.search(found):
            seen.prompts.append(int(prompt[1]) / load.texts)


async def generate(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    """Reads one stream. Raises `ValueError` if it is refused or breaks off."""
    body = {
        "model": engine.model,
        "prompt": _text(load.prompt_words),
        "max_tokens": load.max_tokens,
        "ignore_eos": True,
        "stream": True,
        # vLLM's own: every event has the number of tokens so far. An event that vLLM merged for a slow
        # reader, or that holds accepted speculative tokens, has several.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    count, line = TokenCount(seen, time.perf_counter()), b""
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise ValueError(_refusal(answer.status, await answer.read()))
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            if line.startswith(b'data: {"error"') or _BROKEN_OFF.search(line):
                raise ValueError(_refusal(answer.status, line[6:]))
            count.add_event(line, time.perf_counter())
    if not count.tokens:
        raise ValueError("a stream without a token")
    if not line.startswith(b"data: [DONE]"):
        raise ValueError("a stream broke off")
    seen.answers += 1


class TokenCount:
    """Counts the tokens of one stream and the time between them."""

    def __init__(self, seen: Seen, began: float) -> None:
        self.tokens = 0
        self._seen, self._last = seen, began

    def add_event(self, event: bytes, now: float) -> None:
        """The tokens of one event share the time since the event before."""
        made = _MADE.search(event)
        new = int(made[1]) - self.tokens if made else 1
        if new <= 0:  # the last event, with the total
            return
        seen, gap = self._seen, now - self._last
        if now >= seen.begin:
            seen.tokens += new
            seen.counted = seen.counted and made is not None
            if self.tokens:
                seen.gaps += [gap / new] * new
            else:
                seen.firsts.append(gap)
                if prompt := _PROMPT.search(event):
                    seen.prompts.append(int(prompt[1]))
        self.tokens += new
        self._last = now


def _text(words: int) -> str:
    """Random words after a unique one: no prefix cache helps."""
    return f"{random.getrandbits(64):x} " + " ".join(random.choices(WORDS, k=words))


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:200].decode(errors='replace').strip()}"
