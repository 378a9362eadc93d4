"""Services an engine's actor depends on. The supervisor implements them; `tests/fakes.py` has the fake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from memoria.engine.process.table import ProcessTable
from memoria.errors import Problem
from memoria.vllm.command import EngineSpec
from memoria.vllm.facts import EngineAddress, FetchProgress, LaunchSettings, Progress, Sample


class Ticket(Protocol):
    """A place in the queue at the device's gate."""

    spoiled: bool
    blocked: Problem | None

    async def enter(
        self, check: Callable[[], Awaitable[Problem | None]], on_blocked: Callable[[Problem], None]
    ) -> None: ...

    def leave(self) -> None: ...


class CoreConnections(Protocol):
    """The passengers of one start: memoria's plugin in its processes."""

    at_gate: asyncio.Event
    on_lost: Callable[[], None] | None
    """Called when an engine core that was let through ends."""

    def let_through(self) -> None: ...

    def ask_for_stacks(self) -> None: ...


class EngineHost(Protocol):
    @property
    def process_table(self) -> ProcessTable: ...

    @property
    def standby(self) -> bool:
        """Whether the engine has a standby."""
        ...

    @property
    def on_demand(self) -> bool:
        """Whether it runs only while it is needed."""
        ...

    @property
    def sleep_level(self) -> int:
        """vLLM's; 0: its process ends when it makes room."""
        ...

    @property
    def verifies_wakes(self) -> bool: ...

    @property
    def launch_settings(self) -> LaunchSettings:
        """Of the next start; its results are left out."""
        ...

    def spec(self, start_id: str) -> EngineSpec: ...

    async def has_model(self) -> bool:
        """Whether there is nothing to fetch from the hub before a start."""
        ...

    async def fetch_model(self, on_progress: Callable[[FetchProgress], None]) -> FetchProgress:
        """Wait until its model is here; returns what has come. Raises `FetchError`."""
        ...

    def ticket(self, *, first: bool = False) -> Ticket:
        """`first`: before all others, of an engine that neither measures the device nor was there late."""
        ...

    def expect(self, start_id: str) -> CoreConnections:
        """Expect the passengers of a start; called before it is spawned."""
        ...

    async def check_address(self) -> None:
        """Raises `UnavailableError` when another process listens on the engine's port."""
        ...

    def spawned(self, start_id: str, pid: int) -> None: ...

    def forget(self, start_id: str) -> None:
        """Nothing is left of a start."""
        ...

    def set_releasing(self, start_id: str, releasing: bool) -> None:
        """While true of any start no engine passes the device's gate, and one behind it is spoiled."""
        ...

    @property
    def is_calm(self) -> bool:
        """No other engine is behind the device's gate, and no other's memory is on its way back."""
        ...

    async def until_calm(self, on_wait: Callable[[str], None]) -> None:
        """Wait until it `is_calm`. `on_wait`: called with what is in the way."""
        ...

    async def until_alone(self, on_wait: Callable[[str], None]) -> None:
        """Wait until no neighbour is behind the gate, which would see the engine's memory go. `on_wait`:
        called with its name."""
        ...

    async def check_memory(self) -> Problem | None:
        """Why the engine does not fit now, by fresh figures."""
        ...

    async def check_held(self, known: Collection[int]) -> Problem | None:
        """How far these processes of it exceed its budget; None if they do not, or if that is unknown."""
        ...

    def holders(self, known: Collection[int]) -> list[str]:
        """Which of these processes hold device memory, or live, by the latest figures; for people."""
        ...

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]
    ) -> None:
        """Wait until no process is `alive` (which raises `OSError` if that is unknown) and the device holds
        nothing for one that was ever `known`."""
        ...

    async def until_answering(self, address: EngineAddress, start_id: str) -> None:
        """Wait until this start is healthy and has answered a real request."""
        ...

    def reserve_host_memory(self, start_id: str, weights_bytes: int | None) -> Problem | None:
        """For weights that sleep on the host, until the start is forgotten; else why there is none."""
        ...

    async def fall_asleep(self, address: EngineAddress) -> str | None:
        """At its level. Returns why it did not, or None."""
        ...

    async def wake_up(self, address: EngineAddress) -> str | None:
        """Returns why it did not, or None."""
        ...

    async def sample(self, address: EngineAddress) -> Sample | None:
        """An answer that the same weights give again; None if the model serves no such request. Raises
        `UnavailableError`."""
        ...

    async def used_bytes(self, pids: Collection[int]) -> int | None:
        """What these processes hold of the device; None if the driver does not say."""
        ...

    def check_asleep(self, kept_bytes: int) -> Problem | None:
        """Which engine could never be awake while this one keeps so much asleep."""
        ...

    async def check_wake(self, needed_bytes: int | None) -> Problem | None:
        """Why so much is not free now; None: its whole budget."""
        ...

    async def progress(self, address: EngineAddress) -> Progress | None:
        """What the engine core has done so far; None without an answer."""
        ...

    async def answers(self, address: EngineAddress) -> bool:
        """Whether it answers a real request, however long that takes."""
        ...
