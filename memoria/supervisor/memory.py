"""A device's memory as the daemon watches it: off the event loop, never waiting for a driver that hangs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from memoria.errors import MemoriaError, UnavailableError
from memoria.gpu.device import Device, DeviceReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

STEADY_BYTES = 16 << 20  # two readings this close count as the same
BETWEEN_READINGS = 0.25  # seconds


class DeviceMemory:
    """`timeout` in seconds for one reading. While a reading hangs, no second one is begun."""

    def __init__(self, reader: DeviceReader, which: int | str, *, timeout: float = 5.0) -> None:
        self._reader, self._which, self._timeout = reader, which, timeout
        self._reading: asyncio.Future[Device] | None = None
        self.latest: Device | None = None

    async def read(self) -> Device:
        """Raises `UnavailableError` when the driver fails or does not answer in time."""
        if self._reading is None or self._reading.done():
            self._reading = in_daemon_thread(lambda: self._reader.snapshot(self._which))
        try:
            async with asyncio.timeout(self._timeout):
                self.latest = await asyncio.shield(self._reading)
        except TimeoutError:
            raise UnavailableError(
                f"the GPU driver has not answered for {self._timeout:g} s",
                hint="`nvidia-smi` and the kernel log (Xid) tell more; running engines are not affected",
            ) from None
        return self.latest

    async def until_released(self, alive: Callable[[], Collection[int]], known: Collection[int] = ()) -> None:
        """Waits until none of the processes that `alive` names exists, neither they nor those `known` from
        before hold device memory, and the used memory is the same twice in a row. (A killed process has no
        environment any more while the driver is still taking its memory back.) The host's memory moves all
        the time: there the processes' end is enough. Failing readings only prolong the wait."""
        ours = set(known)
        before: int | None = None
        while True:
            left = set(alive())
            ours |= left
            try:
                device = await self.read()
            except MemoriaError as error:
                logger.warning("waiting for memory to come back: %s", error.problems[0].what)
                before = None
            else:
                holding = ours & {process.pid for process in device.processes}
                if not left and not holding:
                    if device.is_host:
                        return
                    if before is not None and abs(device.used_bytes - before) <= STEADY_BYTES:
                        return
                    before = device.used_bytes
                else:
                    before = None
            await asyncio.sleep(BETWEEN_READINGS)


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Like `asyncio.to_thread`, but a call that never returns does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # asyncio must not complain when the one who asked has given up waiting
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
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("a reading came back after the end")

    threading.Thread(target=run, name="memoria-device", daemon=True).start()
    return future
