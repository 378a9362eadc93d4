"""Requests per second and latencies of the last minute, per engine. Bounded, in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memoria.proxy.exchange.record import RequestRecord

WINDOW = 60.0  # seconds
SPEED_WINDOW, SHORTEST = 10.0, 0.5  # seconds
KEPT = 2000  # requests per engine; under more load the window is shorter, the rate still right
SHORTEST_SPAN = 1e-3  # seconds, the clock's resolution


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests that an engine answered within the window. `ttft`: seconds to the first byte of streamed
    answers; `total`: to the last byte of all answers; errors excluded. None where there were none."""

    requests_per_second: float = 0.0
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    total_p50: float | None = None
    total_p95: float | None = None


class _Seen(NamedTuple):
    """One answer. `first` None: not streamed. `total` None: an error."""

    at: float
    first: float | None
    total: float | None


class Rates:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: dict[str, deque[_Seen]] = {}

    def add_request(self, record: RequestRecord) -> None:
        """Requests that no engine answered are ignored."""
        if record.engine is None or record.first_byte_s is None:
            return
        seen = self._seen.get(record.engine)
        if seen is None:
            seen = self._seen[record.engine] = deque(maxlen=KEPT)
        succeeded = record.status < 400
        first = record.first_byte_s if succeeded and record.streamed else None
        seen.append(_Seen(self._clock(), first, record.duration_s if succeeded else None))

    def rate(self, engine: str) -> Rate:
        now = self._clock()
        recent = [one for one in self._seen.get(engine, ()) if now - one.at <= WINDOW]
        if not recent:
            return Rate()
        if len(recent) == KEPT:  # what is kept covers less than the window
            span = max(now - recent[0].at, SHORTEST_SPAN)
        else:
            span = max(min(WINDOW, now - self._began), 1.0)
        firsts = sorted(one.first for one in recent if one.first is not None)
        totals = sorted(one.total for one in recent if one.total is not None)
        return Rate(len(recent) / span, *_percentiles(firsts), *_percentiles(totals))


def _percentiles(times: Sequence[float]) -> tuple[float | None, float | None]:
    """50th and 95th."""
    if not times:
        return None, None
    return times[len(times) // 2], times[int(len(times) * 0.95)]


class Speed:
    """Growth of a counter, from readings at irregular intervals."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read: deque[tuple[float, float]] = deque()

    def per_second(self, total: float | None) -> float | None:
        """Per second over the last ten seconds; None for an unknown `total` and after a single reading."""
        now = self._clock()
        if total is None:
            return None
        if self._read and total < self._read[-1][1]:  # the engine was restarted
            self._read.clear()
        self._read.append((now, total))
        while now - self._read[0][0] > SPEED_WINDOW:
            self._read.popleft()
        began, before = self._read[0]
        return None if now - began < SHORTEST else (total - before) / (now - began)
