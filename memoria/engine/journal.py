"""What happened, in order: every transition with its cause, every passage of a gate. Bounded, in memory."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is wall-clock seconds, `monotonic` orders entries; `subject` is an engine's name, or "memoria"."""

    at: float
    monotonic: float
    subject: str
    what: str
    detail: str


class Journal:
    def __init__(self, size: int = 1000) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._listeners: list[Callable[[Entry], None]] = []

    def add(self, subject: str, what: str, detail: str = "", *, level: int = logging.INFO) -> None:
        entry = Entry(time.time(), time.monotonic(), subject, what, detail)
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

    def listen(self, listener: Callable[[Entry], None]) -> None:
        self._listeners.append(listener)
