"""What one engine needs of the world around it. The supervisor implements it; tests bring their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from memoria.engine.address import EngineAddress
from memoria.engine.command import EngineSpec
from memoria.engine.liveness import Progress
from memoria.engine.situation import Situation
from memoria.errors import Problem


class Ticket(Protocol):
    """A place in the queue of the device's gate."""

    spoiled: bool

    async def enter(
        self, check: Callable[[], Awaitable[Problem | None]], on_blocked: Callable[[Problem], None]
    ) -> None: ...

    def leave(self) -> None: ...


class Boarding(Protocol):
    """The passengers of one start: memoria's plugin in its processes."""

    at_gate: asyncio.Event

    def let_through(self) -> None: ...

    def ask_for_stacks(self) -> None: ...


class Surroundings(Protocol):
    @property
    def standby(self) -> bool:
        """Whether the engine is to have a spare."""
        ...

    @property
    def situation(self) -> Situation:
        """What the next start will have; what came of it is the actor's to add."""
        ...

    def spec(self, start_id: str) -> EngineSpec: ...

    def ticket(self) -> Ticket: ...

    def expect(self, start_id: str) -> Boarding:
        """Before a start is spawned."""
        ...

    def spawned(self, start_id: str, pid: int) -> None: ...

    def forget(self, start_id: str) -> None:
        """When nothing is left of a start."""
        ...

    def set_releasing(self, releasing: bool) -> None:
        """While true nobody passes the device's gate."""
        ...

    async def check_memory(self) -> Problem | None:
        """Whether the engine fits now, by fresh figures."""
        ...

    async def until_released(self, alive: Callable[[], Collection[int]], known: Collection[int]) -> None:
        """Until no process is `alive` and the device holds nothing for one that was ever `known`."""
        ...

    async def until_answering(self, address: EngineAddress) -> None:
        """Until the engine is healthy and has answered a real request."""
        ...

    async def progress(self, address: EngineAddress) -> Progress | None:
        """What the engine core has done so far; None when the engine does not say."""
        ...

    async def answers(self, address: EngineAddress) -> bool:
        """Whether it answers a real request; waits as long as the engine takes."""
        ...
