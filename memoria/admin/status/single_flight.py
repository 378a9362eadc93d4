"""A question to somebody who may hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Asked again and again, of an engine or a driver. While it is not answered no second one is begun: all
    who ask share it. Whoever did not answer within `patience` seconds is waited for `glance` seconds only,
    until it has answered again, so that it delays nothing twice. Who is in a `hurry` waits no longer than for
    a usual answer, once one is known, so that it is not delayed at all."""

    def __init__(
        self,
        ask: Callable[[], Coroutine[Any, Any, T]],
        *,
        patience: float = 1.0,
        hurry: float = 0.03,
        glance: float = 0.02,
    ) -> None:
        self._ask = ask
        self._patience, self._hurry, self._glance = patience, hurry, glance
        self._asked: asyncio.Task[T] | None = None
        self._silent = False
        self._took: float | None = None  # seconds, the latest answer

    @property
    def was_answered(self) -> bool:
        return self._took is not None

    def begin(self) -> asyncio.Task[T]:
        """Asks, unless that is under way."""
        if self._asked is None:
            began = time.monotonic()
            self._asked = asyncio.create_task(self._ask())
            self._asked.add_done_callback(lambda asked: self._answered(asked, time.monotonic() - began))
        return self._asked

    async def answer(self, *, hurry: bool = False) -> T | None:
        """None where there is no answer in time. Raises what `ask` raises."""
        asked = self.begin()
        limit = self._limit(hurry=hurry)
        await asyncio.wait({asked}, timeout=limit)
        if not asked.done():
            self._silent |= limit >= self._patience  # a hurry says nothing against whoever is asked
            return None
        return asked.result()

    def _limit(self, *, hurry: bool) -> float:
        if self._silent:
            return self._glance
        if not hurry or self._took is None:
            return self._patience
        return min(self._patience, max(self._hurry, 2 * self._took))

    def _answered(self, asked: asyncio.Task[T], took: float) -> None:
        self._asked = None
        if not asked.cancelled() and asked.exception() is None:
            self._silent, self._took = False, took
