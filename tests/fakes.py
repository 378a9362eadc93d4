"""Stand-ins that more than one test uses: a clock, a device, and the world around one engine."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

from memoria.engine.process.table import ProcessTable
from memoria.errors import Problem, UnavailableError
from memoria.gpu.device import Device
from memoria.supervisor.passengers import CoreConnections
from memoria.vllm.command import EngineSpec
from memoria.vllm.facts import (
    EngineAddress,
    FetchProgress,
    LaunchSettings,
    Progress,
    Sample,
    UnixAddress,
)

GIB = 2**30
PRELUDE = """
import os, signal, sys, time

def ready():
    print("ready", os.environ["MEMORIA_START"])

"""


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], object]) -> None:
    """For what only asking tells: a file's content, the end of a process that is not our child."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def device(used_gib: float = 0.0, *, is_host: bool = False) -> Device:
    used = int(used_gib * GIB)
    return Device(0, "GPU-0", "a GPU", 100 * GIB, used, 100 * GIB - used, 0, (), is_host)


class FakeReader:
    """Answers with `answers` in their order, the last one for ever; `block` makes it hang."""

    def __init__(self, *answers: Device | Exception) -> None:
        self.answers = list(answers)
        self.calls = 0
        self._open = threading.Event()
        self._open.set()

    def block(self) -> None:
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()

    def snapshot(self, which: int | str) -> Device:
        self.calls += 1
        self._open.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def driver(self) -> str:
        return "fake"

    def close(self) -> None:
        self._open.set()


@dataclass
class FakeTicket:
    """Lets everybody pass at once unless `closed`."""

    opened: asyncio.Event
    spoiled: bool = False
    blocked: Problem | None = None
    passed: bool = False
    left: bool = False

    async def enter(
        self, check: Callable[[], Awaitable[Problem | None]], on_blocked: Callable[[Problem], None]
    ) -> None:
        if not self.opened.is_set() and (problem := await check()) is not None:
            self.blocked = problem
            on_blocked(problem)
        await self.opened.wait()
        self.blocked = None
        self.passed = True

    def leave(self) -> None:
        self.left = True


@dataclass
class FakeHost:
    """An engine that is `script` (Python), on no device. It is ready when it has called `ready()`."""

    log: Path
    script: str
    standby: bool = False
    on_demand: bool = False
    passenger: bool = True  # whether its core waits at the gate
    argv: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    problem: Problem | None = None
    gate_open: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    alone: asyncio.Event = field(default_factory=asyncio.Event)  # no neighbour is behind the gate
    held_problems: list[Problem] = field(default_factory=list)
    taken: Problem | None = None  # why it has no place to listen
    process_table: ProcessTable = field(default_factory=ProcessTable)
    tickets: list[FakeTicket] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    releasing: list[bool] = field(default_factory=list)
    boarding: CoreConnections = field(default_factory=CoreConnections)
    moves: bool = True  # whether its engine core makes tokens
    tokens: int = 0
    figures: Progress | Literal["tokens"] | None = "tokens"  # what it says instead
    asked: int = 0
    fetch: Callable[[Callable[[FetchProgress], None]], Awaitable[FetchProgress]] | None = None
    answering: asyncio.Event = field(default_factory=asyncio.Event)  # whether it answers memoria's requests
    sleep_level: int = 0
    verifies_wakes: bool = True
    no_host_memory: Problem | None = None
    sleep_problem: str | None = None
    wake_problem: str | None = None
    never_sleeps: bool = False
    used: list[int | None] = field(default_factory=lambda: [50 * GIB, GIB])  # read one after the other
    samples: list[Sample | Exception | None] = field(default_factory=lambda: ["a"])  # the last one for ever
    unfit: Problem | None = None  # with what it keeps asleep
    orders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate_open.set()
        self.alone.set()
        self.released.set()

    def spec(self, start_id: str) -> EngineSpec:
        argv = self.argv or (sys.executable, "-S", "-u", "-c", PRELUDE + self.script)
        env = {"MEMORIA_START": start_id, "PATH": "/usr/bin:/bin", **self.env}
        return EngineSpec("engine", argv, env, UnixAddress(f"/nowhere/{start_id}.sock"), start_id)

    async def has_model(self) -> bool:
        return self.fetch is None

    async def fetch_model(self, on_progress: Callable[[FetchProgress], None]) -> FetchProgress:
        assert self.fetch is not None
        return await self.fetch(on_progress)

    def ticket(self, *, first: bool = False) -> FakeTicket:
        self.tickets.append(FakeTicket(self.gate_open))
        return self.tickets[-1]

    def expect(self, start_id: str) -> CoreConnections:
        self.starts.append(start_id)
        self.boarding = CoreConnections()
        if self.passenger:
            self.boarding.at_gate.set()
        return self.boarding

    async def check_address(self) -> None:
        if self.taken is not None:
            raise UnavailableError(self.taken)

    def spawned(self, start_id: str, pid: int) -> None:
        self.pids.append(pid)

    def forget(self, start_id: str) -> None:
        self.forgotten.append(start_id)

    @property
    def launch_settings(self) -> LaunchSettings:
        return LaunchSettings(Decimal("0.5"), 24 * 2**30, max_num_seqs=256, max_num_batched_tokens=2048)

    def set_releasing(self, start_id: str, releasing: bool) -> None:
        self.releasing.append(releasing)

    @property
    def is_calm(self) -> bool:
        return self.alone.is_set()

    async def until_calm(self, on_wait: Callable[[str], None]) -> None:
        if not self.alone.is_set():
            on_wait("neighbour is behind the gate")
        await self.alone.wait()

    async def until_alone(self, on_wait: Callable[[str], None]) -> None:
        if not self.alone.is_set():
            on_wait("neighbour")
        await self.alone.wait()

    async def check_memory(self) -> Problem | None:
        return self.problem

    async def check_held(self, known: Collection[int]) -> Problem | None:
        return self.held_problems.pop(0) if self.held_problems else None

    def holders(self, known: Collection[int]) -> list[str]:
        return [f"pid {pid} holds 1.0 GiB" for pid in sorted(known)]

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]
    ) -> None:
        while await self._lives(alive):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self.released.wait()

    async def _lives(self, alive: Callable[[], Awaitable[Collection[int]]]) -> bool:
        try:
            return bool(await alive())
        except OSError:
            return True

    async def until_answering(self, address: EngineAddress, start_id: str) -> None:
        while f"ready {self.starts[-1]}" not in self.log.read_text().splitlines():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def reserve_host_memory(self, start_id: str, weights_bytes: int | None) -> Problem | None:
        return self.no_host_memory

    async def fall_asleep(self, address: EngineAddress) -> str | None:
        self.orders.append("sleep")
        if self.never_sleeps:
            await asyncio.Event().wait()
        return self.sleep_problem

    async def wake_up(self, address: EngineAddress) -> str | None:
        self.orders.append("wake")
        return self.wake_problem

    async def sample(self, address: EngineAddress) -> Sample | None:
        found = self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def used_bytes(self, pids: Collection[int]) -> int | None:
        return self.used.pop(0) if len(self.used) > 1 else self.used[0]

    def check_asleep(self, kept_bytes: int) -> Problem | None:
        return self.unfit

    async def check_wake(self, needed_bytes: int | None) -> Problem | None:
        self.orders.append(f"needs {(needed_bytes or 0) // GIB}")
        return self.problem

    async def progress(self, address: EngineAddress) -> Progress | None:
        if self.moves:
            self.tokens += 1
        return self.figures if self.figures != "tokens" else ((b"tokens", b"%d" % self.tokens),)

    async def answers(self, address: EngineAddress) -> bool:
        await self.answering.wait()
        self.asked += 1
        return True
