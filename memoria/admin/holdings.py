"""What processes hold of a device."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import psutil

from memoria.gpu.device import Device


def held_bytes(device: Device, pids: Collection[int]) -> int | None:
    """On a host their resident memory. None where there are none, or the driver does not tell."""
    if not pids:
        return None
    if device.is_host:
        return sum(_resident(pid) for pid in pids)
    held = [process.used_bytes for process in device.processes if process.pid in pids]
    return None if None in held else sum(size for size in held if size is not None)


def resident_bytes(pids: Iterable[int]) -> int:
    """The host's memory that these processes hold."""
    return sum(_resident(pid) for pid in pids)


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
