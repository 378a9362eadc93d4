"""The figures of a load: rates and times of each engine, alone and together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Failures:
    """Requests without a proper answer; `first` is the first one's error."""

    count: int = 0
    first: str | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """`rate` is in texts per second, `text_tokens` the mean of a text, `latency` that of a request with all
    its texts. None: unknown, or there was no answer."""

    engine: str
    rate: float
    text_tokens: float | None
    latency: Times | None
    failures: Failures = Failures()


@dataclass(frozen=True, slots=True)
class Generation:
    """`rate` is in tokens per second, all streams together; `prompt_tokens` the mean of a prompt;
    `first_token` the time from the request; `between_tokens` that of one stream, and `gaps` its percentiles,
    for a curve. `counted` is False if the engine sent no token counts: then rate and gaps are those of
    events."""

    engine: str
    rate: float
    prompt_tokens: float | None
    first_token: Times | None
    between_tokens: Times | None
    gaps: tuple[float, ...]
    counted: bool = True
    failures: Failures = Failures()


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` is the measured time."""

    name: str
    seconds: float
    embedding: tuple[Embedding, ...] = ()
    generation: tuple[Generation, ...] = ()

    @property
    def engines(self) -> tuple[Embedding | Generation, ...]:
        return self.embedding + self.generation

    @property
    def failures(self) -> int:
        return sum(engine.failures.count for engine in self.engines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def times(samples: Sequence[float]) -> Times | None:
    """The median and the 99th percentile (nearest rank)."""
    ordered = sorted(samples)
    return Times(rank(ordered, 50), rank(ordered, 99)) if ordered else None


def percentiles(samples: Sequence[float]) -> tuple[float, ...]:
    """The 1st to the 99th."""
    ordered = sorted(samples)
    return tuple(rank(ordered, percent) for percent in range(1, 100)) if ordered else ()


def mean(samples: Sequence[float]) -> float | None:
    return sum(samples) / len(samples) if samples else None


def rank(ordered: Sequence[float], percent: int) -> float:
    """The smallest sample that `percent` of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
