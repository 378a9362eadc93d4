"""Parts of the kit within so many seconds: in the order of their worth, each only while there is time for it,
and the last one broken off so that everything can be ended in time.

Where machines are lent by the minute: `python -m tests.gpu 560`. What is measured is written after each part.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import pytest

SECONDS = "MEMORIA_GPU_BUDGET"
SLOWNESS = "MEMORIA_GPU_SLOWNESS"
# What each part takes on an H200 with 16 cores, about. The first start compiles; `planned` is of that start.
PARTS = {
    **{"memory": 120.0, "planned": 2.0, "load": 95.0, "kill": 80.0, "sleep": 75.0, "race": 50.0, "mps": 95.0},
    **{"boundary": 150.0, "beside": 150.0, "swap": 110.0},
}
CLOSING = 20.0  # to end a daemon and its engines, and to write


class OutOfTime(Exception):
    pass


class Budget:
    """`slowness`: how many times longer than an H200's this machine's parts are."""

    def __init__(self, seconds: float, slowness: float = 1.0) -> None:
        self._until, self._slowness = time.monotonic() + seconds, slowness
        self._may_break_off = False

    @classmethod
    def of_environment(cls) -> Budget | None:
        seconds = os.environ.get(SECONDS)
        return cls(float(seconds), float(os.environ.get(SLOWNESS, "1"))) if seconds else None

    @property
    def left(self) -> float:
        """Seconds to measure in."""
        return self._until - time.monotonic() - CLOSING * min(1.0, self._slowness)

    def why_not(self, part: str) -> str | None:
        needs = PARTS[part] * self._slowness
        return None if needs <= self.left else f"{max(0.0, self.left):.0f} s are left, it takes {needs:.0f}"

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raises `OutOfTime` in the block when the time is over; in the main thread."""

        def break_off(_: int, __: FrameType | None) -> None:
            if self._may_break_off:  # else everything is being ended already
                self._may_break_off = False
                raise OutOfTime("the budget is spent")

        before = signal.signal(signal.SIGALRM, break_off)
        self._may_break_off = True
        signal.setitimer(signal.ITIMER_REAL, max(0.01, self.left))
        try:
            yield
        finally:
            self._may_break_off = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def part_of(item: pytest.Item) -> str:
    return item.name.split("_")[1]


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    worth = list(PARTS)
    return sorted(items, key=lambda item: worth.index(part_of(item)))
