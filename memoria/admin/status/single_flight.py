"""One call at a time to something that may hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """A repeated call to an engine or a driver; concurrent callers share the one in progress.

    A caller waits at most `timeout` seconds. After a timeout callers wait only `retry_timeout` seconds until
    the call has answered again, so that one that hangs delays a caller once. In a `hurry` a caller waits
    about as long as the latest answer took (`hurry_timeout` at least), so that it is not delayed at all."""

    def __init__(
        self,
        call: Callable[[], Coroutine[Any, Any, T]],
        *,
        timeout: float = 1.0,
        hurry_timeout: float = 0.03,
        retry_timeout: float = 0.02,
    ) -> None:
        self._call = call
        self._timeout, self._hurry_timeout, self._retry_timeout = timeout, hurry_timeout, retry_timeout
        self._running: asyncio.Task[T] | None = None
        self._timed_out = False
        self._took: float | None = None  # seconds, the latest answer

    @property
    def has_answered(self) -> bool:
        return self._took is not None

    def begin(self) -> asyncio.Task[T]:
        """Start the call unless one is in progress."""
        if self._running is None:
            began = time.monotonic()
            self._running = asyncio.create_task(self._call())
            self._running.add_done_callback(lambda task: self._ended(task, time.monotonic() - began))
        return self._running

    async def answer(self, *, hurry: bool = False) -> T | None:
        """None where there is no answer in time. Raises what the call raises."""
        task = self.begin()
        limit = self._limit(hurry=hurry)
        await asyncio.wait({task}, timeout=limit)
        if not task.done():
            self._timed_out |= limit >= self._timeout  # a caller in a hurry proves nothing
            return None
        return task.result()

    def _limit(self, *, hurry: bool) -> float:
        if self._timed_out:
            return self._retry_timeout
        if not hurry or self._took is None:
            return self._timeout
        return min(self._timeout, max(self._hurry_timeout, 2 * self._took))

    def _ended(self, task: asyncio.Task[T], took: float) -> None:
        self._running = None
        if not task.cancelled() and task.exception() is None:
            self._timed_out, self._took = False, took
