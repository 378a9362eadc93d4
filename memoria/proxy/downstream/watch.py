"""One coarse timer for all that may fall silent, in place of a timer for every request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)


class Watched(Protocol):
    def on_tick(self, now: float) -> None:
        """`now` is `time.monotonic()`."""


Kind = TypeVar("Kind", bound=Watched)


class Watch(Generic[Kind]):
    """Calls `on_tick` of everything added, every `interval` seconds. Silence is measured from one tick to
    another, so a limit is kept to within two intervals, and a byte that passes costs no more than a flag."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # a change counts from the next tick on
        self._watched: set[Kind] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Kind]:
        """What is watched now; it may be added and discarded meanwhile."""
        return iter(tuple(self._watched))

    def add(self, watched: Kind) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)

    def discard(self, watched: Kind) -> None:
        self._watched.discard(watched)

    def _tick(self) -> None:
        now = time.monotonic()
        for watched in self:
            try:
                watched.on_tick(now)
            except Exception:  # one that fails must not take the others' clock
                logger.exception("%r could not be looked after", watched)
        self._timer = None
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._tick)


class Standstill:
    """For how long something has looked the same."""

    __slots__ = ("_seen", "_since")

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def lasts(self, now: float, seen: object) -> float:
        """Seconds since `seen` was another."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since
