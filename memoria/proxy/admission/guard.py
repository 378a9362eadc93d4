"""The latency guard: protects one engine's token rate by limiting its neighbours' requests on the GPU.

As TCP's congestion control (CUBIC, RFC 9438): the limit falls by half while the tokens are late, and while
they are not it comes back on a curve that is flat about the number that was too much: soon near it, then for
a while little above it, then ever faster. So it swings about what the protected engine can bear, and is back
at the ceiling within a minute once nothing is late. It knows nothing of models, batches or GPUs. Pure: the
caller says when a period is over.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass

from memoria.config.model import Config, Guard
from memoria.proxy.admission.admission import Admission

PERIOD = 0.5  # seconds between two calls of `step`

_ENOUGH = 20  # gaps; of fewer, the slowest twentieth would be a single one
_LONGEST = 4  # periods; then whatever was seen must do
_IDLE = 20  # periods without a token after which nothing needs protection
_FALL = 0.5
_BACK = 10  # periods in time until the limit is again what was too much
# Bounds of a histogram in seconds, 0.1 ms to 100 s in steps of an eighth; of a gap, only its place is kept.
_RATIO = 1.125
_BOUNDS = tuple(1e-4 * _RATIO**step for step in range(118))


@dataclass(frozen=True, slots=True)
class GuardState:
    """`limit` None: no neighbour is limited. `gap_p95`: of the last period, seconds, to about an eighth;
    None while the protected engine is idle. `lowered`: how many times the limit fell."""

    limit: int | None
    gap_p95: float | None
    lowered: int


class LatencyGuard:
    """`target`: seconds between two tokens of the protected engine that 95 % of the gaps should not exceed.
    `ceiling`: the most any neighbour may have in flight without a limit, at least 1."""

    def __init__(self, target: float, ceiling: int) -> None:
        self._target, self._ceiling = target, ceiling
        self._limit = self._too_much = ceiling
        self._lowered = self._good = 0  # good: periods in time since the limit fell
        self._gap_p95: float | None = None
        self._quiet = 0
        self._begin()

    def __repr__(self) -> str:
        return f"<LatencyGuard {self._limit}/{self._ceiling} p95={self._gap_p95}>"

    @property
    def limit(self) -> int:
        """Most requests each neighbour may have in flight, from 1 to the ceiling."""
        return self._limit

    @property
    def state(self) -> GuardState:
        limit = self._limit if self._limit < self._ceiling else None
        return GuardState(limit, self._gap_p95, self._lowered)

    def observe(self, gap: float) -> None:
        """Seconds between two pieces of one stream of the protected engine; not the time to its first one."""
        self._gaps += 1
        if gap > self._target:
            self._late += 1
        self._counts[bisect_left(_BOUNDS, gap)] += 1

    def step(self, in_flight: int) -> int:
        """Ends a period and returns the new limit. `in_flight`: the most a neighbour had during it; with none
        at all, the neighbours are not what delays the tokens."""
        self._periods += 1
        if not self._gaps:
            self._quiet += 1
            if self._quiet >= _IDLE:
                self._limit, self._gap_p95 = self._ceiling, None
                self._begin()
            return self._limit
        self._quiet = 0
        if self._gaps < _ENOUGH and self._periods < _LONGEST:
            return self._limit
        self._gap_p95 = self._percentile()
        if self._late * 20 <= self._gaps:
            self._good += self._periods
            curve = self._too_much * (1 + (1 - _FALL) * (self._good / _BACK - 1) ** 3)
            self._limit = min(max(self._limit, int(curve)), self._ceiling)
        elif 0 < in_flight <= self._limit:  # above it, the last fall has yet to take effect
            fallen = max(1, int(in_flight * _FALL))
            self._lowered += fallen < self._limit
            self._limit, self._too_much, self._good = fallen, max(in_flight, 2), 0
        self._begin()
        return self._limit

    def _begin(self) -> None:
        self._gaps = self._late = self._periods = 0
        self._counts = [0] * (len(_BOUNDS) + 1)

    def _percentile(self) -> float:
        """The bound that 95 % of the gaps do not exceed."""
        rest = self._gaps * 19 / 20
        for bound, count in zip(_BOUNDS, self._counts, strict=False):
            rest -= count
            if rest <= 0:
                return bound
        return _BOUNDS[-1]


class Guarding:
    """Limits the neighbours, the other engines on the protected one's device."""

    def __init__(self, config: Config, wish: Guard, *, period: float = PERIOD) -> None:
        """`period`: seconds between two decisions."""
        device = config.engine(wish.protect).gpu
        neighbours = [e for e in config.engines if e.name != wish.protect and e.gpu == device]
        self.protects, self.target = wish.protect, wish.inter_token_ms / 1000  # seconds
        self.neighbours = tuple(engine.name for engine in neighbours)
        self._period = period
        most = max((engine.max_requests for engine in neighbours), default=1)
        self._guard = LatencyGuard(self.target, most)
        self.observe = self._guard.observe

    @property
    def state(self) -> GuardState:
        return self._guard.state

    async def run(self, admission: Admission) -> None:
        while self.neighbours:
            await asyncio.sleep(self._period)
            # the peak between two steps counts: at the step itself there may be a pause between two requests
            limit = self._guard.step(max([admission.take_peak(name) for name in self.neighbours]))
            for name in self.neighbours:
                admission.cap(name, limit)
