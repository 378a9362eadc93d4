"""Weights of engines that sleep at level 1, in the host's pinned memory."""

from __future__ import annotations

from collections.abc import Callable

from memoria.errors import Problem
from memoria.text import gib


class HostMemory:
    """One copy of the weights for each start that has slept: it stays with the process after a wake (vLLM
    #16663). `available`: the host's free memory in bytes, read once, of which half may be taken."""

    def __init__(self, available: Callable[[], int]) -> None:
        self._half = available() // 2
        self._held: dict[str, tuple[str, int]] = {}  # engine and bytes, by start

    def of(self, engine: str) -> int:
        return sum(size for name, size in self._held.values() if name == engine)

    def reserve(self, start: str, engine: str, size: int, limit: int | None) -> Problem | None:
        """Until `release`; None is the half. Returns why there is not enough."""
        others = sum(held for other, (_, held) in self._held.items() if other != start)
        most = self._half if limit is None else limit
        if others + size > most:
            return Problem(
                f"its weights take {gib(size)} GiB of host memory, other engines' {gib(others)}, "
                f"and {gib(most)} GiB are for both",
                hint="raise `swap.host_memory` if the host has more, or write `sleep_level: 2`",
            )
        self._held[start] = engine, size
        return None

    def release(self, start: str) -> None:
        self._held.pop(start, None)
