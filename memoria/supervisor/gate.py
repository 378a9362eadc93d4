"""The GPU gate: the lock under which a device's memory may change.

vLLM measures free memory while it loads, and sizes its KV cache by the result; a neighbour that allocates or
frees meanwhile makes the result wrong, or aborts the start (vLLM #55827, #56830). So per device one engine at
a time is between the gate and readiness, and none passes while the memory of a dead engine is still coming
back. An engine that is inside meanwhile is spoiled; a stop that can wait does so until the gate is empty.

Engines take numbered tickets when they are spawned (in the file's order) and pass in the order of their
numbers. An engine with slow imports does not block the others for ever: one that has waited at the gate for
`overtake_after` seconds may pass those that have not arrived yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from memoria.engine.events import EventKind, Journal
from memoria.errors import Problem

Check = Callable[[], Awaitable[Problem | None]]


class Ticket:
    """One start's place in the queue of one gate. `leave` ends it, however the start went."""

    def __init__(self, gate: GpuGate, engine: str, number: int, *, first: bool = False) -> None:
        self._gate, self.engine, self.number, self.first = gate, engine, number, first
        self.arrived_at: float | None = None
        self.blocked: Problem | None = None  # found by its latest memory check
        self.spoiled = False  # a neighbour's memory moved while this one was inside

    def __repr__(self) -> str:
        return f"<Ticket {self.number} {self.engine}>"

    async def enter(self, check: Check, on_blocked: Callable[[Problem], None]) -> None:
        """Waits in line, then until `check` finds no problem; a blocked engine lets others pass."""
        await self._gate.admit_ticket(self, check, on_blocked)

    def leave(self) -> None:
        self._gate.drop_ticket(self)


class GpuGate:
    """`recheck`: seconds between two memory checks of a blocked engine."""

    def __init__(
        self,
        device: str,
        journal: Journal,
        *,
        overtake_after: float = 60.0,
        recheck: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._journal, self._clock = device, journal, clock
        self._overtake_after, self._recheck = overtake_after, recheck
        self._tickets: list[Ticket] = []
        self._numbers = 0
        self._inside: Ticket | None = None
        self._releasing: set[tuple[str, str]] = set()  # engine and start: a removed engine may have returned
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<GpuGate {self._device} inside={self._inside} releasing={sorted(self._releasing)}>"

    def is_calm(self, engine: str) -> bool:
        """Whether no other engine is inside, and no other's memory is on its way back."""
        return self._unrest(engine) is None

    def ticket(self, engine: str, *, first: bool = False) -> Ticket:
        """`first`: of an engine that falls asleep or wakes. It measures nothing, so it waits only for who is
        inside; what comes back meanwhile is no harm."""
        self._numbers += 1
        ticket = Ticket(self, engine, self._numbers, first=first)
        self._tickets.append(ticket)
        return ticket

    async def admit_ticket(self, ticket: Ticket, check: Check, on_blocked: Callable[[Problem], None]) -> None:
        ticket.arrived_at = self._clock()
        while True:
            while not self._may_pass(ticket):
                await self._change(self._wait_for(ticket))
            self._inside = ticket  # before the check, so that no memory moves during it
            try:
                problem = await check()
            except BaseException:
                self._step_back(ticket)
                raise
            ticket.blocked = problem
            if problem is None and (ticket.first or not self._releasing):
                ticket.spoiled = False  # what moved before does not count
                self._journal.add_event(EventKind.GATE_PASSED, ticket.engine, device=self._device)
                return
            self._step_back(ticket)
            if problem is not None:
                on_blocked(problem)
                # not `_change`: two blocked engines would wake each other without end
                await asyncio.sleep(self._recheck)

    def drop_ticket(self, ticket: Ticket) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
        if self._inside is ticket:
            self._inside = None
            self._journal.add_event(EventKind.GATE_LEFT, ticket.engine, device=self._device)
        self._notify()

    def set_releasing(self, engine: str, releasing: bool, *, start: str = "") -> None:
        """While a dead engine's memory is on its way back no ticket passes, and the one inside is spoiled. A
        failed start stays inside until its exit is handled, so the order of the two does not matter."""
        if releasing:
            self._releasing.add((engine, start))
            if self._inside is not None and self._inside.engine != engine:
                self._inside.spoiled = True
        elif (engine, start) in self._releasing:
            self._releasing.remove((engine, start))
            self._notify()

    async def until_calm(self, engine: str, on_wait: Callable[[str], None]) -> None:
        """Waits until `is_calm`; `on_wait` gets each obstacle."""
        await self._until_clear(lambda: self._unrest(engine), on_wait)

    def _unrest(self, engine: str) -> str | None:
        if self._inside is not None and self._inside.engine != engine:
            return f"{self._inside.engine} is behind the gate"
        others = min((other for other, _ in self._releasing if other != engine), default=None)
        return None if others is None else f"the memory of {others} is on its way back"

    async def until_alone(self, engine: str, on_wait: Callable[[str], None]) -> None:
        """Waits until no other engine inside has yet to get ready; `on_wait` gets each obstacle."""
        await self._until_clear(lambda: self._other_inside(engine), on_wait)

    async def _until_clear(self, obstacle: Callable[[], str | None], on_wait: Callable[[str], None]) -> None:
        reported: str | None = None
        while (found := obstacle()) is not None:
            if found != reported:
                reported = found
                on_wait(found)
            await self._change(self._recheck)

    def _other_inside(self, engine: str) -> str | None:
        inside = self._inside
        if inside is None or inside.engine == engine:
            return None
        ends = any(inside.engine == releasing for releasing, _ in self._releasing)
        return None if ends else inside.engine

    def _may_pass(self, ticket: Ticket) -> bool:
        if ticket.first:
            return self._inside is None
        if self._inside is not None or self._releasing:
            return False
        return all(
            self._lets_pass(earlier, ticket) for earlier in self._tickets if earlier.number < ticket.number
        )

    def _lets_pass(self, earlier: Ticket, later: Ticket) -> bool:
        if earlier.blocked is not None or earlier.first:
            return True
        waited = self._clock() - (later.arrived_at or self._clock())
        return earlier.arrived_at is None and waited >= self._overtake_after

    def _wait_for(self, ticket: Ticket) -> float:
        """Seconds after which it might overtake, if nothing changes before."""
        left = self._overtake_after - (self._clock() - (ticket.arrived_at or self._clock()))
        return left if left > 0 else self._recheck

    def _step_back(self, ticket: Ticket) -> None:
        if self._inside is ticket:
            self._inside = None
            self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _change(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass
