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
from memoria.plan.free_memory import check_held, check_start, check_wake
from memoria.plan.outcome import machine_of
from memoria.preflight.preflight import Deployment
from memoria.supervisor.device_memory import DeviceMemory
from memoria.supervisor.gate import GpuGate, Ticket
from memoria.supervisor.host_memory import HostMemory
from memoria.supervisor.mps import Mps
from memoria.supervisor.passengers import CoreConnections, Passengers
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.verifier import Verifier
from memoria.text import gib
from memoria.vllm import client as vllm_client
from memoria.vllm.command import EngineSpec, StartFacts, build_spec
from memoria.vllm.facts import (
    EngineAddress,
    FetchProgress,
    LaunchSettings,
    Progress,
    Sample,
    TcpAddress,
)
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
    host_memory: HostMemory
    mps: Mps | None = None

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
    def sleep_level(self) -> int:
        return self.engine.sleep_level

    @property
    def verifies_wakes(self) -> bool:
        return self.deployment.config.swap.verify

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
            mps=self._mps_variables(),
        )
        return build_spec(config, self.verifier.pinned(self.engine, device, install), install, facts)

    def _mps_variables(self) -> dict[str, str]:
        """The engine sees one device, so the limit is of its device 0."""
        if self.mps is None:
            return {}
        found = {"CUDA_MPS_PIPE_DIRECTORY": str(self.mps.pipes)}
        if self.engine.compute_percent is not None:
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(self.engine.compute_percent)
        if self.engine.pinned_memory is not None:
            limit = self.engine.pinned_memory or self.budget.start_bytes
            found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={-(-limit // 2**20)}M"
        return found

    @property
    def _hub_environ(self) -> dict[str, str]:
        return {**self.environ, **self.engine.env}

    async def has_model(self) -> bool:
        wanted = repositories(self.engine.model, self.engine.vllm_args, self._hub_environ)
        return await in_daemon_thread(lambda: is_complete(wanted, self._hub_environ))

    async def fetch_model(self, on_progress: Callable[[FetchProgress], None]) -> FetchProgress:
        wanted = repositories(self.engine.model, self.engine.vllm_args, self._hub_environ)
        return await self.fetcher.fetch(wanted, self._hub_environ, on_progress)

    def ticket(self, *, first: bool = False) -> Ticket:
        return self.gate.ticket(self.engine.name, first=first)

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
        self.host_memory.release(start_id)

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
        if self.mps is not None and not self.mps.is_up:  # it would run without MPS, and without its limits
            return Problem("the MPS control daemon is not up")
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

    def reserve_host_memory(self, start_id: str, weights_bytes: int | None) -> Problem | None:
        if self.sleep_level != 1:
            return None
        size = self.budget.requested_bytes if weights_bytes is None else weights_bytes
        limit = self.deployment.config.swap.host_memory
        return self.host_memory.reserve(start_id, self.engine.name, size, limit)

    async def fall_asleep(self, address: EngineAddress) -> str | None:
        return await vllm_client.fall_asleep(address, self.sleep_level)

    async def wake_up(self, address: EngineAddress) -> str | None:
        return await vllm_client.wake_up(address, self.sleep_level)

    async def sample(self, address: EngineAddress) -> Sample | None:
        return await vllm_client.sample(address, self.engine.runner, self.engine.served_model_name[0])

    async def used_bytes(self, pids: Collection[int]) -> int | None:
        used = [process.used_bytes for process in (await self.memory.read()).processes if process.pid in pids]
        return None if None in used else sum(size or 0 for size in used)

    def check_asleep(self, kept_bytes: int) -> Problem | None:
        plan = next(p for p in self.deployment.plan.devices if self.budget in p.budgets)
        plan = plan.with_asleep({self.engine.name: kept_bytes})
        never = next((b.engine for b in plan.on_demand if not plan.may_be_awake({b.engine})), None)
        if never is None:
            return None
        return Problem(f"it keeps {gib(kept_bytes)} GiB asleep, beside which {never} could never be awake")

    async def check_wake(self, needed_bytes: int | None) -> Problem | None:
        try:
            device = await self.memory.read()
        except MemoriaError as error:
            return error.problems[0]
        return check_wake(self.budget, device, await self.own_pids(), needed_bytes)

    async def progress(self, address: EngineAddress) -> Progress | None:
        return await vllm_client.progress(address, timeout=self._timeouts.health)

    async def answers(self, address: EngineAddress) -> bool:
        return await vllm_client.answers(address, self.engine.runner, self.engine.served_model_name[0])

    @property
    def _timeouts(self) -> Timeouts:
        return self.deployment.config.timeouts
