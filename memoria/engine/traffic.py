"""An engine's requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

# How many requests wait for the engine alone; and a number that differs whenever something has come from the
# engine.
Flow = tuple[int, int]


class Traffic:
    """Counts requests in flight; a drain awaits `idle`. The proxy replaces `flow`; until then all of them
    count as waiting. `works_until`: monotonic time up to which the engine's core counts as making progress,
    kept by hang detection. `on_idle` is called whenever the last one has ended."""

    def __init__(self) -> None:
        self.flow: Callable[[], Flow] = lambda: (self.in_flight, 0)
        self.on_idle: Callable[[], None] = lambda: None
        self.in_flight = 0
        self.total = 0
        self.works_until = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Traffic in_flight={self.in_flight} total={self.total}>"

    def began(self) -> None:
        self.in_flight += 1
        self.total += 1
        self._idle.clear()

    def ended(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()
            self.on_idle()

    async def idle(self, at_most: float | None = None) -> None:
        """Wait until no request is in flight, for `at_most` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._idle.wait()

    async def finished(self, stalled: float) -> None:
        """Wait until no request is in flight; or until the core has made no progress for `stalled` seconds,
        if it shows any: what is left then is idle, as a WebSocket may be for hours."""
        began = time.monotonic()
        while self.in_flight:
            left = stalled
            if self.works_until:
                left -= time.monotonic() - max(began, self.works_until)
                if left <= 0:
                    return
            await self.idle(max(0.01, left))
