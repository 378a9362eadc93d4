"""The services of one engine's actor: its place at its device's gate, its memory, its command line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from memoria.aio import in_daemon_thread
from memoria.config.model import EngineConfig, Timeouts
from memoria.engine.process.port import listens, problem_of
from memoria.engine.process.table import ProcessTable
from memoria.errors import MemoriaError, Problem, UnavailableError
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget
from memoria.plan.footprint.settings import batch_defaults
from memoria.plan.free_memory import check_held, check_start
from memoria.plan.outcome import machine_of
from memoria.preflight.preflight import Deployment
from memoria.supervisor.device_memory import DeviceMemory
from memoria.supervisor.gate import GpuGate, Ticket
from memoria.supervisor.passengers import CoreConnections, Passengers
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.verifier import Verifier
from memoria.text import gib
from memoria.vllm import client as vllm_client
from memoria.vllm.command import EngineSpec, StartFacts, build_spec
from memoria.vllm.facts import EngineAddress, FetchProgress, LaunchSettings, Progress, TcpAddress
from memoria.vllm.fetch.fetcher import Fetcher, is_complete
from memoria.vllm.fetch.repository import repositories

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedHost:
    """Implements `memoria.engine.host.EngineHost`, for one engine of one deployment. `own_pids` finds the
    processes of all engines."""

    deployment: Deployment
    engine: EngineConfig
    gate: GpuGate
    memory: DeviceMemory
    passengers: Passengers
    runtime: RuntimeDir
    environ: Mapping[str, str]
    plugin_dir: Path
    own_pids: Callable[[], Awaitable[Collection[int]]]
    process_table: ProcessTable
    verifier: Verifier
    fetcher: Fetcher

    @property
    def device(self) -> Device:
        return self.deployment.plan.device(self.engine.name)

    @property
    def budget(self) -> Budget:
        return self.deployment.plan.budget(self.engine.name)

    @property
    def standby(self) -> bool:
        return self.engine.standby

    @property
    def on_demand(self) -> bool:
        return self.engine.on_demand

    @property
    def launch_settings(self) -> LaunchSettings:
        seqs, tokens = batch_defaults(self.engine.vllm_args, machine_of(self.device))
        return LaunchSettings(
            self.engine.gpu_memory_utilization,
            self.device.usable_bytes,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
        )

    def spec(self, start_id: str) -> EngineSpec:
        config, install, device = self.deployment.config, self.deployment.install, self.device
        facts = StartFacts(
            start_id=start_id,
            socket_dir=str(self.runtime.engines),
            gate_path=str(self.passengers.path),
            supervisor_pid=os.getpid(),
            plugin_dir=str(self.plugin_dir),
            environ=self.environ,
            device_uuid=None if device.is_host else device.uuid,
            device_index=device.nvml_index,
        )
        return build_spec(config, self.verifier.pinned(self.engine, device, install), install, facts)

    @property
    def _hub_environ(self) -> dict[str, str]:
        return {**self.environ, **self.engine.env}

    async def has_model(self) -> bool:
        wanted = repositories(self.engine.model, self.engine.vllm_args, self._hub_environ)
        return await in_daemon_thread(lambda: is_complete(wanted, self._hub_environ))

    async def fetch_model(self, on_progress: Callable[[FetchProgress], None]) -> FetchProgress:
        wanted = repositories(self.engine.model, self.engine.vllm_args, self._hub_environ)
        return await self.fetcher.fetch(wanted, self._hub_environ, on_progress)

    def ticket(self) -> Ticket:
        return self.gate.ticket(self.engine.name)

    def expect(self, start_id: str) -> CoreConnections:
        self.runtime.state.intend(start_id, self.engine.name)
        return self.passengers.expect(start_id)

    async def check_address(self) -> None:
        port = self.engine.port if self.engine.transport == "tcp" else None
        if port is not None and (problem := await in_daemon_thread(lambda: problem_of(port))) is not None:
            raise UnavailableError(problem)

    def spawned(self, start_id: str, pid: int) -> None:
        self.runtime.state.spawned(start_id, pid)

    def forget(self, start_id: str) -> None:
        self.passengers.forget(start_id)
        with contextlib.suppress(OSError):  # a process that was killed leaves its socket
            self.runtime.socket_of(start_id).unlink()
        self.runtime.state.ended(start_id)

    def set_releasing(self, start_id: str, releasing: bool) -> None:
        self.gate.set_releasing(self.engine.name, releasing, start=start_id)

    @property
    def is_calm(self) -> bool:
        return self.gate.is_calm(self.engine.name)

    async def until_calm(self, on_wait: Callable[[str], None]) -> None:
        await self.gate.until_calm(self.engine.name, on_wait)

    async def until_alone(self, on_wait: Callable[[str], None]) -> None:
        await self.gate.until_alone(self.engine.name, on_wait)

    async def check_memory(self) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:  # without figures no engine passes
            return error.problems[0]
        return check_start(self.budget, device, await self.own_pids())

    async def check_held(self, known: Collection[int]) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:
            logger.warning("%s: cannot tell what it holds: %s", self.engine.name, error.problems[0].what)
            return None
        return check_held(self.budget, device, known)

    def holders(self, known: Collection[int]) -> list[str]:
        device = self.memory.latest
        holding = [p for p in (device.processes if device is not None else ()) if p.pid in known]
        living = {pid for pids in self.process_table.latest.values() for pid in pids} & set(known)
        named = [
            f"pid {p.pid} holds {'memory' if p.used_bytes is None else f'{gib(p.used_bytes)} GiB'}"
            for p in holding
        ]
        return named + [f"pid {pid} does not die" for pid in sorted(living - {p.pid for p in holding})]

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]
    ) -> None:
        await self.memory.until_released(alive, known)

    async def until_answering(self, address: EngineAddress, start_id: str) -> None:
        if isinstance(address, TcpAddress):
            while not await self._listens(start_id, address.port):  # noqa: ASYNC110 - the kernel has no event for it
                await asyncio.sleep(vllm_client.BETWEEN_TRIES)
        await vllm_client.until_answering(
            address,
            self.engine.runner,
            self.engine.served_model_name[0],
            timeout=self._timeouts.health,
        )

    async def _listens(self, start_id: str, port: int) -> bool:
        """Whether it is this start that listens: another process on that port would get the requests."""
        try:
            pids = (await self.process_table.look()).get(start_id, frozenset())
            return await in_daemon_thread(lambda: listens(pids, port))
        except OSError as error:
            logger.warning("%s: cannot tell whether it listens: %s", self.engine.name, error)
            return False

    async def progress(self, address: EngineAddress) -> Progress | None:
        return await vllm_client.progress(address, timeout=self._timeouts.health)

    async def answers(self, address: EngineAddress) -> bool:
        return await vllm_client.answers(address, self.engine.runner, self.engine.served_model_name[0])

    @property
    def _timeouts(self) -> Timeouts:
        return self.deployment.config.timeouts
