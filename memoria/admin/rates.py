"""Requests per second and time to first byte of the last minute, per engine. Bounded, in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from memoria.proxy.exchange import Exchange

WINDOW = 60.0  # seconds
KEPT = 2000  # requests per engine; under more load the window gets shorter, the rate stays right


@dataclass(frozen=True, slots=True)
class Rate:
    """None where nothing was asked in the window."""

    requests_per_second: float | None
    ttft_p95: float | None


class Rates:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: dict[str, deque[tuple[float, float]]] = {}

    def add(self, exchange: Exchange) -> None:
        """One request that is over; those that no engine answered count for none."""
        if exchange.engine is not None and exchange.first_byte_s is not None:
            seen = self._seen.setdefault(exchange.engine, deque(maxlen=KEPT))
            seen.append((self._clock(), exchange.first_byte_s))

    def of(self, engine: str) -> Rate:
        now = self._clock()
        recent = [(at, first) for at, first in self._seen.get(engine, ()) if now - at <= WINDOW]
        if not recent:
            return Rate(None, None)
        # a full buffer covers less than the window
        span = now - recent[0][0] if len(recent) == KEPT else min(WINDOW, now - self._began)
        firsts = sorted(first for _, first in recent)
        return Rate(len(recent) / max(span, 1.0), firsts[int(len(firsts) * 0.95)])
