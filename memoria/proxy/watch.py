"""One coarse timer for all that may fall silent, in place of a timer for every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Protocol

from memoria.proxy.upstream import Upstream


class Watched(Protocol):
    def on_tick(self, now: float) -> None:
        """`now` is `time.monotonic()`."""

    def awaited(self, engine: str) -> Upstream | None:
        """See `flow.py`."""


class Watch:
    """Calls `on_tick` of everything added, every `interval` seconds. Silence is measured from one tick to
    another, so a limit is kept to within two intervals, and a byte that passes costs no more than a flag."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # a change counts from the next tick on
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Watched]:
        """What is watched now; it may be added and discarded meanwhile."""
        return iter(tuple(self._watched))

    def add(self, watched: Watched) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)

    def discard(self, watched: Watched) -> None:
        self._watched.discard(watched)

    def _tick(self) -> None:
        now = time.monotonic()
        for watched in tuple(self._watched):
            watched.on_tick(now)
        self._timer = None
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)
