"""What engines hold of their devices. Reading it takes a walk through all processes: off the event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import psutil

from memoria.engine.marker import values_of
from memoria.gpu.device import Device


def held_bytes(device: Device, pids: set[int]) -> int | None:
    """Of these processes; on a host their resident memory. None where the driver does not tell."""
    if not pids:
        return None
    if device.is_host:
        return sum(_resident(pid) for pid in pids)
    held = [process.used_bytes for process in device.processes if process.pid in pids]
    return None if None in held else sum(size for size in held if size is not None)


def resident_bytes(pids: Iterable[int]) -> int:
    """The host's memory that these processes hold."""
    return sum(_resident(pid) for pid in pids)


def held_by_start(devices: Mapping[str, Device | None]) -> dict[str, int]:
    """By the ids of the starts given, each with its engine's device; what is not known is left out."""
    pids: dict[str, set[int]] = {}
    for pid, start in values_of("MEMORIA_START").items():
        pids.setdefault(start, set()).add(pid)
    held = {
        start: held_bytes(device, pids.get(start, set()))
        for start, device in devices.items()
        if device is not None
    }
    return {start: size for start, size in held.items() if size is not None}


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
