"""Calls that may never return, made off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

FREED = 8  # pieces in one turn, each a read at most
LARGE_READS, LARGE_READS_S = 8, 0.0003  # of all connections, in one pass of the event loop


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Like `asyncio.to_thread`, but a call that never returns does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # retrieved, so that asyncio does not log it once the caller has given up
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop is closed
            logger.debug("a result came after the end")

    threading.Thread(target=run, name="memoria-call", daemon=True).start()
    return future


class Turns:
    """Long work on the event loop, which gives way to others after each `seconds`."""

    def __init__(self, seconds: float = 0.001) -> None:
        self._seconds, self._began = seconds, time.monotonic()

    async def give_way(self) -> None:
        if time.monotonic() - self._began > self._seconds:
            await asyncio.sleep(0)
            self._began = time.monotonic()


class Backlog:
    """Connections with more to read than fits into one callback, and other work of that kind. They take
    turns, one in each pass of the event loop, so that others wait for one of them at most, however many there
    are."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._large_reads, self._reading_since = 0, 0.0  # in this pass

    def has_room(self) -> bool:
        """After a large read: False where the connection's next one is for a later turn."""
        now = time.monotonic()
        if not self._large_reads:
            self._reading_since = now
            asyncio.get_running_loop().call_soon(self._begin_pass)
        self._large_reads += 1
        return self._large_reads < LARGE_READS and now - self._reading_since < LARGE_READS_S

    def _begin_pass(self) -> None:
        self._large_reads = 0

    def add(self, go_on: Callable[[], None]) -> None:
        self._waiting.append(go_on)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        go_on = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        go_on()

    def free(self, pieces: list[bytes]) -> None:
        """Empties the list, a few in each turn: to give back 60 MiB takes up to 20 ms."""
        del pieces[-FREED:]
        if pieces:
            self.add(partial(self.free, pieces))


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
