"""The latency guard applied to the engines of a configuration."""

from __future__ import annotations

import asyncio

from memoria.config.model import Config, Guard
from memoria.proxy.admission.admission import Admission
from memoria.proxy.admission.guard import PERIOD, GuardState, LatencyGuard


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
