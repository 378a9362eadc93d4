"""How late the event loop is, and what holds it up: every client waits for that, whatever it sends.

A timer notes how long after its time it runs. A thread finds out what runs meanwhile when that takes long; it
needs the interpreter's lock for it. A call into C that gives the lock up shows as the line that made it, one
that does not only in the processor time of its thread.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from memoria.admin.telemetry.exposition import Family, Histogram, gauge, histogram

logger = logging.getLogger(__name__)

BUSY, IDLE = 0.01, 0.1  # seconds between two looks: close ones cost nothing beside work, but wake an idle CPU
WORK = 0.1  # share of the time that the loop's thread has computed: more is busy
LONG = 0.1  # seconds; is logged
QUIET = 10.0  # seconds between two such lines
SPANS, SPAN = 6, 10.0  # the longest of a minute
FRAMES = 4
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
IDLE_IN = (asyncio.runners.__file__, selectors.__file__)  # uvloop has no frame of its own
HERE = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class _Worked:
    """Processor time in seconds, of the loop's thread and of all threads."""

    loop: float
    process: float

    @classmethod
    def now(cls) -> _Worked:
        return cls(time.thread_time(), time.process_time())

    def since(self, before: _Worked) -> _Worked:
        return _Worked(self.loop - before.loop, self.process - before.process)

    def unseen_by(self, long: float) -> str:
        """What no thread could look at, by who computed for `long` while the loop was late."""
        if self.loop >= long:
            return "itself, in calls that kept the interpreter's lock (a copy, a scan, a garbage collection)"
        if self.process >= long:
            return "another thread of memoria, in calls that kept the interpreter's lock"
        return "something outside of it: the machine ran other programs, or was suspended"


class LoopLag:
    """`longest`: of the last minute, in seconds."""

    def __init__(
        self, *, busy: float = BUSY, idle: float = IDLE, long: float = LONG, work: float = WORK
    ) -> None:
        self.seen = Histogram(BOUNDS)
        self._busy, self._idle, self._long, self._work = busy, idle, long, work
        self._spans: deque[tuple[int, float]] = deque(maxlen=SPANS)  # number of the span, its longest
        self._due = self._looked = 0.0
        self._worked = _Worked(0.0, 0.0)
        self._found: tuple[float, str] | None = None  # when it was due, and what ran instead
        self._logged = -QUIET

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the running loop."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._looked, self._worked = time.monotonic(), _Worked.now()
        self._arm(self._looked, self._idle)
        self._ended = threading.Event()
        threading.Thread(target=self._find, name="loop lag", daemon=True).start()
        try:
            yield
        finally:
            self._timer.cancel()
            self._ended.set()

    @property
    def longest(self) -> float:
        now = int(time.monotonic() / SPAN)
        return max((lag for span, lag in self._spans if now - span < SPANS), default=0.0)

    def families(self) -> tuple[Family, ...]:
        return (
            histogram(
                "memoria_event_loop_lag_seconds",
                "Delay of memoria's event loop: how long any client waits for what others have it do.",
                [({}, self.seen)],
            ),
            gauge(
                "memoria_event_loop_lag_max_seconds",
                "The longest delay of the event loop in the last minute.",
                [({}, self.longest)],
            ),
        )

    def _arm(self, now: float, wait: float) -> None:
        self._due = now + wait
        self._timer = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        now, worked = time.monotonic(), _Worked.now()
        lag = max(0.0, now - self._due)
        self.seen.observe(lag)
        span = int(now / SPAN)
        if not self._spans or self._spans[-1][0] != span:
            self._spans.append((span, lag))
        elif lag > self._spans[-1][1]:
            self._spans[-1] = (span, lag)
        if lag >= self._long and now - self._logged >= QUIET:
            self._logged = now
            found = self._found
            meanwhile = worked.since(self._worked)
            by = found[1] if found and found[0] == self._due else meanwhile.unseen_by(self._long)
            computed = min(meanwhile.loop, lag)
            logger.warning(
                "the event loop was held up for %.2f s by %s; its thread computed for %.2f s of it",
                lag,
                by,
                computed,
            )
        is_busy = worked.loop - self._worked.loop > self._work * (now - self._looked)
        self._looked, self._worked = now, worked
        self._arm(now, self._busy if is_busy else self._idle)

    def _find(self) -> None:
        """The thread: wakes when a look is long overdue."""
        while not self._ended.wait(max(self._busy, self._due + self._long - time.monotonic())):
            due = self._due
            if time.monotonic() - due >= self._long and (self._found is None or self._found[0] != due):
                frame = sys._current_frames().get(self._thread)
                if frame is not None and (by := _running(frame)):
                    self._found = due, by


def _running(frame: FrameType) -> str:
    """The innermost calls, from within; blank outside of any callback."""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=FRAMES, lookup_lines=False)
    if stack[0].filename in IDLE_IN:
        return ""
    return " < ".join(f"{call.name} ({_short(call.filename)}:{call.lineno})" for call in stack)


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(HERE)) if path.is_relative_to(HERE) else "/".join(path.parts[-2:])
