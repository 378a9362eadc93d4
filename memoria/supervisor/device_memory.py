"""Readings of a device's memory, made off the event loop: a driver that hangs holds up nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from memoria.aio import in_daemon_thread
from memoria.errors import MemoriaError, UnavailableError
from memoria.gpu.device import Device, DeviceReader

logger = logging.getLogger(__name__)

STEADY_BYTES = 16 << 20  # two readings this close count as the same
BETWEEN_READINGS = 0.25  # seconds


class DeviceMemory:
    """`timeout`: seconds for one reading. While a reading hangs, no second one is begun."""

    def __init__(self, reader: DeviceReader, which: int | str, *, timeout: float = 5.0) -> None:
        self._reader, self._which, self._timeout = reader, which, timeout
        self._reading: asyncio.Future[Device] | None = None
        self.latest: Device | None = None

    async def read(self) -> Device:
        """Raises `UnavailableError` if the driver fails or does not answer in time."""
        if self._reading is None or self._reading.done():
            self._reading = in_daemon_thread(lambda: self._reader.snapshot(self._which))
        try:
            async with asyncio.timeout(self._timeout):
                self.latest = await asyncio.shield(self._reading)
        except TimeoutError:
            raise UnavailableError(
                f"the GPU driver has not answered for {self._timeout:g} s",
                hint="see `nvidia-smi` and the kernel log (Xid); running engines are not affected",
            ) from None
        return self.latest

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int] = ()
    ) -> None:
        """Waits until `alive` names no process, neither those it has named nor those `known` hold memory of
        the device, and the used memory is the same twice in a row. (A killed process has no environment any
        more while the driver is still taking its memory back.) The host's memory moves all the time: there
        the end of the processes is enough. Readings that fail only prolong the wait."""
        ours = set(known)
        before: int | None = None
        logged = ""
        while True:
            try:
                left = set(await alive())
                ours |= left
                device = await self.read()
            except (MemoriaError, OSError) as error:
                trouble = error.problems[0].what if isinstance(error, MemoriaError) else str(error)
                if trouble != logged:
                    logger.warning("waiting for memory to come back: %s", trouble)
                before, logged = None, trouble
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
