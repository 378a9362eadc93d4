"""Restarts changed engines one after another, so that as few as possible are away at once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from memoria.engine.actor import EngineActor
from memoria.engine.events import EventKind
from memoria.engine.lifecycle import FACTS, State
from memoria.plan.plan import Plan
from memoria.supervisor.supervisor import Supervisor


def order(engines: Collection[str], before: Plan, after: Plan) -> list[str]:
    """Engines that give memory back come first, since one that grows may need it; then the file's order."""

    def growth(name: str) -> int:
        return after.budget(name).requested_bytes - before.budget(name).requested_bytes

    files = [budget.engine for planned in after.devices for budget in planned.budgets]
    return sorted(engines, key=lambda name: (growth(name), files.index(name)))


class RollingRestart:
    """The restarts of a reload, and those still pending of the one before."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._pending: list[str] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._leaving: dict[asyncio.Task[None], EngineActor] = {}
        supervisor.listen(lambda _: self._changed.set())

    def begin(self, retired: Sequence[EngineActor], restarts: Sequence[str], added: Sequence[str]) -> None:
        """`restarts` in their order. Returns at once."""
        if self._task is not None:
            self._task.cancel()
        for task, actor in tuple(self._leaving.items()):
            if self._supervisor.actors.get(actor.name) is actor:  # it has come back
                task.cancel()
                del self._leaving[task]
        for actor in retired:  # goes on even if another reload replaces this one
            task = asyncio.create_task(self._supervisor.retire(actor), name=f"{actor.name} leaves")
            self._leaving[task] = actor
            task.add_done_callback(lambda task: self._leaving.pop(task, None))
        late = [name for name in self._pending if name not in restarts and name in self._supervisor.actors]
        self._pending = [*restarts, *late]
        self._task = asyncio.create_task(self._run(added), name="reload")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, added: Sequence[str]) -> None:
        """Added engines start at once, and wait for memory at the gate; the rest waits for removed ones."""
        for name in added:
            self._supervisor.actors[name].start()
        for actor in tuple(self._leaving.values()):
            await actor.settled()  # not `at_rest`: held memory may never come back
        while (following := await self._next()) is not None:
            if following.state not in (State.HELD, State.DORMANT):  # else its next start has the new settings
                following.restart()
                await self._until_over(following)

    async def _next(self) -> EngineActor | None:
        """The first engine that may go now: the gate is open to it, and no neighbour is measuring."""
        reported: set[str] = set()
        while True:
            self._changed.clear()
            actors = self._supervisor.actors
            # an engine stopped by hand stays stopped
            self._pending = [name for name in self._pending if name in actors and actors[name].wanted]
            if not self._pending:
                return None
            for name in self._pending:
                if actors[name].may_go:
                    self._pending.remove(name)
                    return actors[name]
            for name in set(self._pending) - reported:
                reported.add(name)
                self._supervisor.journal.add_event(EventKind.RESTART_WAITS, name)
            await self._changed.wait()

    async def _until_over(self, actor: EngineActor) -> None:
        left = False  # whether it has left the state that it was restarted from
        before = actor.snapshot.state
        while True:
            snapshot = actor.snapshot
            left = left or snapshot.state is not before
            if left and (FACTS[snapshot.state].settles or snapshot.is_blocked):
                return
            self._changed.clear()
            await self._changed.wait()
