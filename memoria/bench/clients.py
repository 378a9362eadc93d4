"""One request of each kind, and what of it counts."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from memoria.bench.figures import Embedding, Failures, Generation, mean, percentiles, times

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

_VECTOR = re.compile(rb'"embedding"\s?:')
_MADE = re.compile(rb'"completion_tokens":\s?(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s?(\d+)')
_BROKEN_OFF = re.compile(rb'"finish_reason":\s?"(?:abort|error)"')


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
    kind: Literal["embedding", "generation"]


@dataclass(slots=True)
class Seen:
    """What the clients of one engine saw since `begin`, on the clock of `time.perf_counter`. Failures count
    from the first request on."""

    begin: float
    answers: int = 0  # of either kind, whole ones
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
        """After the last moment that counts. That nobody was answered at all must not look like success."""
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


async def embed(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    """Raises `ValueError` for an answer that is none."""
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
        if told := _PROMPT.search(found):
            seen.prompts.append(int(told[1]) / load.texts)


async def generate(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    """One stream. Raises `ValueError` where it is refused or breaks off."""
    body = {
        "model": engine.model,
        "prompt": _text(load.prompt_words),
        "max_tokens": load.max_tokens,
        "ignore_eos": True,
        "stream": True,
        # vLLM's own: every event says how many tokens there are so far. One that a slow reader made vLLM
        # merge, or that holds what was guessed right, has several.
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
            count.take(line, time.perf_counter())
    if not count.tokens:
        raise ValueError("a stream without a token")
    if not line.startswith(b"data: [DONE]"):
        raise ValueError("a stream broke off")
    seen.answers += 1


class TokenCount:
    """Counts the tokens of one stream, and the time between them."""

    def __init__(self, seen: Seen, began: float) -> None:
        self.tokens = 0
        self._seen, self._last = seen, began

    def take(self, event: bytes, now: float) -> None:
        """Tokens that come in one event share the time since the one before."""
        told = _MADE.search(event)
        new = int(told[1]) - self.tokens if told else 1
        if new <= 0:  # the last event, with the sum
            return
        seen, gap = self._seen, now - self._last
        if now >= seen.begin:
            seen.tokens += new
            seen.counted = seen.counted and told is not None
            if self.tokens:
                seen.gaps += [gap / new] * new
            else:
                seen.firsts.append(gap)
                if prompt := _PROMPT.search(event):
                    seen.prompts.append(int(prompt[1]))
        self.tokens += new
        self._last = now


def _text(words: int) -> str:
    """Never twice the same, so that no cache of prefixes answers."""
    return f"{random.getrandbits(64):x} " + " ".join(random.choices(WORDS, k=words))


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:200].decode(errors='replace').strip()}"
