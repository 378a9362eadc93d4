"""What a load shows: rates and times of each kind of request, alone and together. Pure."""

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
class Embedding:
    """`rate`: texts a second; `latency`: of a request, with all of its texts. None: nothing was answered."""

    engine: str
    rate: float
    latency: Times | None


@dataclass(frozen=True, slots=True)
class Generation:
    """`rate`: tokens a second, all streams together; `first_token` from the request on; `between_tokens` of
    one stream; `gaps`: the percentiles of the same, for a curve."""

    engine: str
    rate: float
    first_token: Times | None
    between_tokens: Times | None
    gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` is the measured time. `failures` are requests that were not answered as they should be;
    `failure` tells of the first."""

    name: str
    seconds: float
    embedding: Embedding | None
    generation: Generation | None
    failures: int
    failure: str | None

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


def rank(ordered: Sequence[float], percent: int) -> float:
    """The smallest sample that `percent` of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
