"""What a load shows: rates and times of each engine, alone and together. Pure."""

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
    """Requests that were not answered as they should be; `first` tells of the first."""

    count: int = 0
    first: str | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """`rate`: texts a second; `text_tokens`: of a text, in the mean; `latency`: of a request, with all of its
    texts. None: not told, or nothing was answered."""

    engine: str
    rate: float
    text_tokens: float | None
    latency: Times | None
    failures: Failures = Failures()


@dataclass(frozen=True, slots=True)
class Generation:
    """`rate`: tokens a second, all streams together; `prompt_tokens`: of a prompt, in the mean;
    `first_token` from the request on; `between_tokens` of one stream; `gaps`: the percentiles of the same,
    for a curve. `counted` is False where the engine did not tell how many tokens its events held: then rate
    and gaps are those of events."""

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
