"""What one engine needs of the world around it. The supervisor implements it; tests bring their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from memoria.engine.address import EngineAddress
from memoria.engine.launch_settings import LaunchSettings
from memoria.engine.process.table import ProcessTable
from memoria.errors import Problem
from memoria.vllm.command import EngineSpec
from memoria.vllm.metrics import Progress


class Ticket(Protocol):
    """A place in the queue of the device's gate."""

    spoiled: bool

    async def enter(
        self, check: Callable[[], Awaitable[Problem | None]], on_blocked: Callable[[Problem], None]
    ) -> None: ...

    def leave(self) -> None: ...


class CoreConnections(Protocol):
    """The passengers of one start: memoria's plugin in its processes."""

    at_gate: asyncio.Event
    on_lost: Callable[[], None] | None
    """Called when an engine core that was let through has ended."""

    def let_through(self) -> None: ...

    def ask_for_stacks(self) -> None: ...


class EngineHost(Protocol):
    @property
    def census(self) -> ProcessTable: ...

    @property
    def standby(self) -> bool:
        """Whether the engine is to have a spare."""
        ...

    @property
    def situation(self) -> LaunchSettings:
        """What the next start will have; what came of it is the actor's to add."""
        ...

    def spec(self, start_id: str) -> EngineSpec: ...

    def ticket(self) -> Ticket: ...

    def expect(self, start_id: str) -> CoreConnections:
        """Before a start is spawned."""
        ...

    async def check_address(self) -> None:
        """Raises `UnavailableError` when somebody else listens where the engine is to."""
        ...

    def spawned(self, start_id: str, pid: int) -> None: ...

    def forget(self, start_id: str) -> None:
        """When nothing is left of a start."""
        ...

    def set_releasing(self, start_id: str, releasing: bool) -> None:
        """While true of any start nobody passes the device's gate, and whoever is behind it is spoiled."""
        ...

    @property
    def is_calm(self) -> bool:
        """No other engine is behind the device's gate, and no other's memory is on its way back."""
        ...

    async def until_calm(self, on_wait: Callable[[str], None]) -> None:
        """Until it `is_calm`. `on_wait` is told what is in the way."""
        ...

    async def until_alone(self, on_wait: Callable[[str], None]) -> None:
        """Until no neighbour is behind the gate that would see the engine's memory go. `on_wait` is told who
        is."""
        ...

    async def check_memory(self) -> Problem | None:
        """Whether the engine fits now, by fresh figures."""
        ...

    async def check_held(self, known: Collection[int]) -> Problem | None:
        """Whether these processes of it clearly hold more than its budget; None where nobody can tell."""
        ...

    def holders(self, known: Collection[int]) -> list[str]:
        """Which of these processes hold device memory, or live, by the latest figures; for a person."""
        ...

    async def until_released(
        self, alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]
    ) -> None:
        """Until no process is `alive` (which raises `OSError` where nobody knows) and the device holds
        nothing for one that was ever `known`."""
        ...

    async def until_answering(self, address: EngineAddress, start_id: str) -> None:
        """Until this start is healthy and has answered a real request."""
        ...

    async def progress(self, address: EngineAddress) -> Progress | None:
        """What the engine core has done so far; None when the engine does not say."""
        ...

    async def answers(self, address: EngineAddress) -> bool:
        """Whether it answers a real request; waits as long as the engine takes."""
        ...
