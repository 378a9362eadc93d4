"""What happened, in order: every transition with its cause, every passage of a gate. Bounded, in memory."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is wall-clock seconds, `monotonic` orders entries; `subject` is an engine's name, or "memoria".
    `number` counts from 1, without gaps."""

    at: float
    monotonic: float
    subject: str
    what: str
    detail: str
    number: int = 0


class Journal:
    def __init__(self, size: int = 1000) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._listeners: list[Callable[[Entry], None]] = []
        self.last = 0  # the number of the latest entry

    def add(self, subject: str, what: str, detail: str = "", *, level: int = logging.INFO) -> None:
        self.last += 1
        entry = Entry(time.time(), time.monotonic(), subject, what, detail, self.last)
        self._entries.append(entry)
        logger.log(
            level, "%s: %s%s", subject, what, f": {detail}" if detail else "", extra={"engine": subject}
        )
        for listener in self._listeners:
            try:
                listener(entry)
            except Exception:  # a screen's bug must not stop an engine's task
                logger.exception("a listener failed")

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def after(self, number: int) -> tuple[Entry, ...]:
        """What came after the entry of this number, as far as it is still known."""
        missing = min(self.last - number, len(self._entries))
        return tuple(islice(self._entries, len(self._entries) - missing, None)) if missing > 0 else ()

    def listen(self, listener: Callable[[Entry], None]) -> None:
        self._listeners.append(listener)
