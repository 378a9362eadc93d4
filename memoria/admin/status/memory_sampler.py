"""Memory of the devices by process, sampled off the event loop because a driver may hang."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memoria.admin.status.status import OtherProcess
from memoria.aio import SingleFlight, in_daemon_thread
from memoria.errors import MemoriaError
from memoria.gpu.device import Device
from memoria.supervisor.supervisor import Supervisor

logger = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NONE: Mapping[int, int] = {}

# For each start its processes: resident memory in bytes, by pid.
Processes = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class MemorySample:
    """As far as it is known: by device UUID the `devices` and the `others`, processes that are not memoria's;
    by engine name the bytes `used` on its device, and those of its standby on the host."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    others: Mapping[str, tuple[OtherProcess, ...]] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    standbys: Mapping[str, int] = field(default_factory=dict)


class MemorySampler:
    """A driver that hangs, or a process stuck in one, delays a sample by one second at most, and only
    once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._processes = SingleFlight(self._read_processes)
        self._devices: dict[str, SingleFlight[Device]] = {}
        self._silent: set[str] = set()

    async def sample(self) -> MemorySample:
        processes, found = await asyncio.gather(
            self._known_processes(),
            asyncio.gather(*(self._device(uuid) for uuid in self._supervisor.memories)),
        )
        devices = {device.uuid: device for device in found if device is not None}
        if processes is None:
            return MemorySample(devices)
        used, standbys = {}, {}
        for name, actor in self._supervisor.actors.items():
            device = devices.get(self._supervisor.plan.device(name).uuid)
            own = processes.get(actor.snapshot.start_id or "", _NONE)
            if device is not None and (size := used_bytes(device, own)) is not None:
                used[name] = size
            if (standby := actor.standby_start_id) is not None:
                standbys[name] = sum(processes.get(standby, _NONE).values())
        ours = {pid for start in self._supervisor.start_ids() for pid in processes.get(start, _NONE)}
        others = {
            device.uuid: tuple(
                OtherProcess(process.pid, process.user, process.command, process.used_bytes)
                for process in device.processes
                if process.pid not in ours
            )
            for device in devices.values()
        }
        return MemorySample(devices, others, used, standbys)

    async def _known_processes(self) -> Processes | None:
        try:
            return await self._processes.answer()
        except OSError as error:
            logger.debug("the processes of the engines are not known: %s", error)
            return None

    async def _read_processes(self) -> Processes:
        starts = await self._supervisor.process_table.look()
        return await in_daemon_thread(
            lambda: {start: {pid: _resident(pid) for pid in pids} for start, pids in starts.items()}
        )

    def _reading(self, uuid: str) -> SingleFlight[Device]:
        if uuid not in self._devices:
            self._devices[uuid] = SingleFlight(self._supervisor.memories[uuid].read)
        return self._devices[uuid]

    async def _device(self, uuid: str) -> Device | None:
        """Logs when a driver stops answering, and when it answers again."""
        try:
            device, problem = await self._reading(uuid).answer(), "no answer"
        except MemoriaError as error:
            device, problem = None, error.problems[0].what
        if device is None and uuid not in self._silent:
            self._silent.add(uuid)
            logger.warning("no figures for device %s: %s", uuid, problem)
        elif device is not None and uuid in self._silent:
            self._silent.discard(uuid)
            logger.warning("figures for device %s again", uuid)
        return device


def used_bytes(device: Device, processes: Mapping[int, int]) -> int | None:
    """Memory of these processes; on a host their resident memory. None where there are none, or where the
    driver does not report it."""
    if not processes:
        return None
    if device.is_host:
        return sum(processes.values())
    sizes = [process.used_bytes for process in device.processes if process.pid in processes]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _resident(pid: int) -> int:
    """proc(5), statm: the second figure, in pages. 0 for a process that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
