"""Requests per second and their times over the last minute, per engine. Bounded, in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from memoria.proxy.exchange import Exchange

WINDOW = 60.0  # seconds
SPEED_WINDOW, SHORTEST = 10.0, 0.5
KEPT = 2000  # requests per engine; under more load the window gets shorter, the rate stays right


@dataclass(frozen=True, slots=True)
class Rate:
    """None where nothing was asked in the window. Seconds: to the first byte, and to the last."""

    requests_per_second: float | None = None
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    total_p50: float | None = None
    total_p95: float | None = None


class Rates:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: dict[str, deque[tuple[float, float, float]]] = {}

    def add(self, exchange: Exchange) -> None:
        """One request that is over; those that no engine answered count for none."""
        if exchange.engine is not None and exchange.first_byte_s is not None:
            seen = self._seen.setdefault(exchange.engine, deque(maxlen=KEPT))
            seen.append((self._clock(), exchange.first_byte_s, exchange.duration_s))

    def of(self, engine: str) -> Rate:
        now = self._clock()
        recent = [one for one in self._seen.get(engine, ()) if now - one[0] <= WINDOW]
        if not recent:
            return Rate()
        # a full buffer covers less than the window
        span = now - recent[0][0] if len(recent) == KEPT else min(WINDOW, now - self._began)
        _, firsts, totals = (sorted(times) for times in zip(*recent, strict=True))
        middle, late = len(recent) // 2, int(len(recent) * 0.95)
        return Rate(len(recent) / max(span, 1.0), firsts[middle], firsts[late], totals[middle], totals[late])


class Speed:
    """How fast a counter grows, from what is read of it now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read: deque[tuple[float, float]] = deque()

    def of(self, total: float | None) -> float | None:
        """Per second, over the readings of the last ten seconds; None after a single one, or none."""
        now = self._clock()
        if total is None or (self._read and total < self._read[-1][1]):  # its engine was started anew
            self._read.clear()
        if total is None:
            return None
        self._read.append((now, total))
        while now - self._read[0][0] > SPEED_WINDOW:
            self._read.popleft()
        began, before = self._read[0]
        return None if now - began < SHORTEST else (total - before) / (now - began)
