"""What the engines and others hold of the devices: found out off the event loop, by whoever may hang."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memoria.admin.status.single_flight import SingleFlight
from memoria.admin.status.status import OtherProcess
from memoria.aio import in_daemon_thread
from memoria.errors import MemoriaError
from memoria.gpu.device import Device
from memoria.supervisor.supervisor import Supervisor

logger = logging.getLogger(__name__)

_PAGE = os.sysconf("SC_PAGE_SIZE")
_NOBODY: Mapping[int, int] = {}

# The processes of each start: their resident memory in bytes by their ids.
Processes = Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class Holdings:
    """Bytes by engines' names, as far as they are known: what each holds of its device, and what its standby
    holds of the host. `devices`, and the processes there that are not memoria's, by the devices' UUIDs."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    others: Mapping[str, tuple[OtherProcess, ...]] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    standbys: Mapping[str, int] = field(default_factory=dict)


class MemorySampler:
    """Neither a driver that hangs nor a process stuck in one delays a look by more than a second, and that
    only once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._processes = SingleFlight(self._ask_for_processes)
        self._devices: dict[str, SingleFlight[Device]] = {}
        self._silent: set[str] = set()

    async def look(self) -> Holdings:
        processes, found = await asyncio.gather(
            self._known_processes(),
            asyncio.gather(*(self._device(uuid) for uuid in self._supervisor.memories)),
        )
        devices = {device.uuid: device for device in found if device is not None}
        if processes is None:
            return Holdings(devices)
        held, standbys = {}, {}
        for name, actor in self._supervisor.actors.items():
            device = devices.get(self._supervisor.plan.device(name).uuid)
            own = processes.get(actor.snapshot.start_id or "", _NOBODY)
            if device is not None and (size := held_bytes(device, own)) is not None:
                held[name] = size
            if (standby := actor.standby_start_id) is not None:
                standbys[name] = sum(processes.get(standby, _NOBODY).values())
        ours = {pid for start in self._supervisor.start_ids() for pid in processes.get(start, _NOBODY)}
        others = {
            device.uuid: tuple(
                OtherProcess(process.pid, process.user, process.command, process.used_bytes)
                for process in device.processes
                if process.pid not in ours
            )
            for device in devices.values()
        }
        return Holdings(devices, others, held, standbys)

    async def _known_processes(self) -> Processes | None:
        try:
            return await self._processes.answer()
        except OSError as error:
            logger.debug("the engines' processes are not known: %s", error)
            return None

    async def _ask_for_processes(self) -> Processes:
        starts = await self._supervisor.census.look()
        return await in_daemon_thread(
            lambda: {start: {pid: _resident(pid) for pid in pids} for start, pids in starts.items()}
        )

    def _reading(self, uuid: str) -> SingleFlight[Device]:
        if uuid not in self._devices:
            self._devices[uuid] = SingleFlight(self._supervisor.memories[uuid].read)
        return self._devices[uuid]

    async def _device(self, uuid: str) -> Device | None:
        """A driver that does not answer is told once, and when it does again."""
        try:
            device, problem = await self._reading(uuid).answer(), "no answer"
        except MemoriaError as error:
            device, problem = None, error.problems[0].what
        if device is None and uuid not in self._silent:
            self._silent.add(uuid)
            logger.warning("no figures of device %s: %s", uuid, problem)
        elif device is not None and uuid in self._silent:
            self._silent.discard(uuid)
            logger.warning("figures of device %s again", uuid)
        return device


def held_bytes(device: Device, processes: Mapping[int, int]) -> int | None:
    """What these processes hold; on a host their resident memory. None where there are none, or the driver
    does not tell."""
    if not processes:
        return None
    if device.is_host:
        return sum(processes.values())
    held = [process.used_bytes for process in device.processes if process.pid in processes]
    return None if None in held else sum(size for size in held if size is not None)


def _resident(pid: int) -> int:
    """proc(5), statm: the second figure, in pages. 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
