"""A question to somebody who may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Asked again and again, of an engine or a driver. While it is not answered no second one is begun: all
    who ask share it. Whoever did not answer within `patience` seconds is waited for `glance` seconds only,
    until it has answered again, so that it delays nothing twice."""

    def __init__(
        self, ask: Callable[[], Coroutine[Any, Any, T]], *, patience: float = 1.0, glance: float = 0.02
    ) -> None:
        self._ask = ask
        self._patience, self._glance = patience, glance
        self._asked: asyncio.Task[T] | None = None
        self._silent = False

    async def answer(self) -> T | None:
        """None where there is no answer in time. Raises what `ask` raises."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._ask())
            self._asked.add_done_callback(self._answered)
        asked = self._asked
        await asyncio.wait({asked}, timeout=self._glance if self._silent else self._patience)
        if not asked.done():
            self._silent = True
            return None
        return asked.result()

    def _answered(self, asked: asyncio.Task[T]) -> None:
        self._asked = None
        if not asked.cancelled() and asked.exception() is None:
            self._silent = False
