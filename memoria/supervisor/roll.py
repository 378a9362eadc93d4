"""Changed engines are restarted one after another, so that no more of them are away than must be."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from memoria.engine.actor import EngineActor
from memoria.engine.lifecycle import State
from memoria.engine.phases import Phase
from memoria.engine.snapshot import EngineSnapshot
from memoria.plan.plan import Plan
from memoria.supervisor.supervisor import Supervisor

# An engine in one of these does not get ready by waiting for it: the next one has its turn.
_GIVES_WAY = frozenset((State.READY, State.STOPPED, State.HELD, State.BACKOFF, State.FAILED))


def order(engines: Collection[str], before: Plan, after: Plan) -> list[str]:
    """Whoever gives memory back first, then the file's order: who grows may need what another gave."""

    def growth(name: str) -> int:
        return after.budget(name).requested_bytes - before.budget(name).requested_bytes

    files = [budget.engine for planned in after.devices for budget in planned.budgets]
    return sorted(engines, key=lambda name: (growth(name), files.index(name)))


class Roll:
    """The restarts that a reload brought about, and those that an earlier one had not come to."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._pending: list[str] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        supervisor.listen(lambda _: self._changed.set())

    def begin(self, retired: Sequence[EngineActor], restarts: Sequence[str], added: Sequence[str]) -> None:
        """`restarts` in their order. Returns at once."""
        if self._task is not None:
            self._task.cancel()
        for actor in retired:  # goes on even if another reload takes the place of this one
            task = asyncio.create_task(self._supervisor.retire(actor), name=f"{actor.name} leaves")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        late = [name for name in self._pending if name not in restarts and name in self._supervisor.actors]
        self._pending = [*restarts, *late]
        self._task = asyncio.create_task(self._run(added), name="reload")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, added: Sequence[str]) -> None:
        """The memory of those that go is given back first; those that come wait for theirs at the gate."""
        for name in added:
            self._supervisor.actors[name].start()
        if self._leaving:
            await asyncio.wait(self._leaving)
        while self._pending:
            actor = self._supervisor.actors[self._pending.pop(0)]
            if actor.wanted:  # what a person has stopped stays stopped
                actor.restart()
                await self._until_over(actor)

    async def _until_over(self, actor: EngineActor) -> None:
        left = False  # the state that it was restarted from
        before = actor.snapshot.state
        while True:
            snapshot = actor.snapshot
            left = left or snapshot.state is not before
            if left and (snapshot.state in _GIVES_WAY or _is_blocked(snapshot)):
                return
            self._changed.clear()
            await self._changed.wait()


def _is_blocked(snapshot: EngineSnapshot) -> bool:
    """It waits for memory that perhaps only another engine's restart gives back."""
    return snapshot.phase is Phase.AT_GATE and snapshot.diagnosis is not None and bool(snapshot.detail)
