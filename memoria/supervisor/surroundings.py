"""The world as one engine's actor sees it: its place at its device's gate, its memory, its command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.engine import probe
from memoria.engine.address import EngineAddress
from memoria.engine.census import Census
from memoria.engine.command import EngineSpec, StartFacts, build_spec
from memoria.engine.liveness import Progress
from memoria.errors import MemoriaError, Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget
from memoria.plan.free_memory import check_held, check_start
from memoria.supervisor.gate import GpuGate, Ticket
from memoria.supervisor.memory import DeviceMemory
from memoria.supervisor.passengers import Boarding, Passengers
from memoria.supervisor.runtime import RuntimeDir
from memoria.supervisor.verifier import Verifier
from memoria.text import gib
from memoria.vllm_env.install import VllmInstall

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSurroundings:
    """Implements `memoria.engine.surroundings.Surroundings`. `own_pids` looks for the processes of all
    engines."""

    config: Config
    engine: EngineConfig
    install: VllmInstall
    device: Device
    budget: Budget
    gate: GpuGate
    memory: DeviceMemory
    passengers: Passengers
    runtime: RuntimeDir
    environ: Mapping[str, str]
    plugin_dir: Path
    own_pids: Callable[[], Awaitable[Collection[int]]]
    census: Census
    verifier: Verifier

    @property
    def standby(self) -> bool:
        return self.engine.standby

    def spec(self, start_id: str) -> EngineSpec:
        facts = StartFacts(
            start_id=start_id,
            socket_dir=str(self.runtime.engines),
            gate_path=str(self.passengers.path),
            supervisor_pid=os.getpid(),
            plugin_dir=str(self.plugin_dir),
            environ=self.environ,
            device_uuid=None if self.device.is_host else self.device.uuid,
        )
        engine = self.verifier.pinned(self.engine, self.device)
        return build_spec(self.config, engine, self.install, facts)

    def ticket(self) -> Ticket:
        return self.gate.ticket(self.engine.name)

    def expect(self, start_id: str) -> Boarding:
        self.runtime.state.intend(start_id, self.engine.name)
        return self.passengers.expect(start_id)

    def spawned(self, start_id: str, pid: int) -> None:
        self.runtime.state.spawned(start_id, pid)

    def forget(self, start_id: str) -> None:
        self.passengers.forget(start_id)
        self.runtime.state.ended(start_id)
        (self.runtime.engines / f"{start_id}.sock").unlink(missing_ok=True)  # one that was killed leaves it

    def set_releasing(self, start_id: str, releasing: bool) -> None:
        self.gate.set_releasing(self.engine.name, releasing, start=start_id)

    async def until_alone(self, on_wait: Callable[[str], None]) -> None:
        await self.gate.until_alone(self.engine.name, on_wait)

    async def check_memory(self) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:  # without figures nothing is let through
            return error.problems[0]
        return check_start(self.budget, device, await self.own_pids())

    async def check_held(self, known: Collection[int]) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:
            logger.warning("%s: what it holds is not known: %s", self.engine.name, error.problems[0].what)
            return None
        return check_held(self.budget, device, known)

    def holders(self, known: Collection[int]) -> list[str]:
        device = self.memory.latest
        holding = [p for p in (device.processes if device is not None else ()) if p.pid in known]
        living = {pid for pids in self.census.latest.values() for pid in pids} & set(known)
        told = [
            f"pid {p.pid} holds {'memory' if p.used_bytes is None else f'{gib(p.used_bytes)} GiB'}"
            for p in holding
        ]
        return told + [f"pid {pid} does not die" for pid in sorted(living - {p.pid for p in holding})]

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]
    ) -> None:
        await self.memory.until_released(alive, known)

    async def until_answering(self, address: EngineAddress, start_id: str) -> None:
        await probe.until_answering(
            address,
            self.engine.runner,
            self.engine.served_model_name[0],
            timeout=self.config.timeouts.health,
        )

    async def progress(self, address: EngineAddress) -> Progress | None:
        return await probe.progress(address, timeout=self.config.timeouts.health)

    async def answers(self, address: EngineAddress) -> bool:
        return await probe.answers(address, self.engine.runner, self.engine.served_model_name[0])
