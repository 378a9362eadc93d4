"""The world as one engine's actor sees it: its place at its device's gate, its memory, its command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.engine import probe
from memoria.engine.address import EngineAddress
from memoria.engine.command import EngineSpec, StartFacts, build_spec
from memoria.engine.liveness import Progress
from memoria.errors import MemoriaError, Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget
from memoria.plan.free_memory import check_start
from memoria.supervisor.gate import GpuGate, Ticket
from memoria.supervisor.memory import DeviceMemory
from memoria.supervisor.passengers import Boarding, Passengers
from memoria.supervisor.runtime import RuntimeDir
from memoria.supervisor.verifier import Verifier
from memoria.vllm_env.install import VllmInstall


@dataclass(frozen=True)
class EngineSurroundings:
    """Implements `memoria.engine.surroundings.Surroundings`. `running` names the processes of all engines."""

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
    running: Callable[[], Collection[int]]
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

    def set_releasing(self, releasing: bool) -> None:
        self.gate.set_releasing(self.engine.name, releasing)

    async def check_memory(self) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:  # without figures nothing is let through
            return error.problems[0]
        return check_start(self.budget, device, self.running())

    async def until_released(self, alive: Callable[[], Collection[int]], known: Collection[int]) -> None:
        await self.memory.until_released(alive, known)

    async def until_answering(self, address: EngineAddress) -> None:
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
