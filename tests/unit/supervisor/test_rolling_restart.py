"""In which order changed engines restart, and what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from memoria.engine.events import Journal
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.plan.plan import Plan, make_plan
from memoria.supervisor.rolling_restart import RollingRestart, order
from tests.unit.plans import config, gpu

if TYPE_CHECKING:
    from memoria.engine.actor import EngineActor
    from memoria.supervisor.supervisor import Supervisor


def plan(**fractions: str) -> Plan:
    return make_plan(config(fractions), {0: gpu()})


def test_an_engine_that_gives_memory_back_goes_first() -> None:
    before, after = plan(a="0.3", b="0.6"), plan(a="0.6", b="0.3")
    assert order(["a", "b"], before, after) == ["b", "a"]


def test_else_the_files_order_counts() -> None:
    same = plan(a="0.2", b="0.2", c="0.2")
    assert order(["c", "a"], same, same) == ["a", "c"]


# ------------------------------------------------------------------ one after the other


class Engine:
    """The part of an actor that a rolling restart uses."""

    def __init__(self, fleet: Fleet, name: str, state: State = State.READY) -> None:
        self._fleet, self.name = fleet, name
        self.may_go = self.wanted = True
        self.restarts = self.starts = 0
        self.snapshot = EngineSnapshot(name, state, since=0.0)
        self.settles = asyncio.Event()

    @property
    def state(self) -> State:
        return self.snapshot.state

    def start(self) -> None:
        self.starts += 1

    def restart(self) -> None:
        self.restarts += 1
        self.gets(State.STOPPING)

    def gets(self, state: State) -> None:
        self.snapshot = replace(self.snapshot, state=state)
        self._fleet.tell(self.snapshot)

    async def settled(self) -> None:
        await self.settles.wait()


class Fleet:
    """The part of a supervisor that it uses."""

    def __init__(self, *names: str) -> None:
        self.journal = Journal()
        self.listeners: list[Callable[[EngineSnapshot], None]] = []
        self.actors = {name: Engine(self, name) for name in names}
        self.retiring = asyncio.Event()

    def listen(self, listener: Callable[[EngineSnapshot], None]) -> None:
        self.listeners.append(listener)

    def tell(self, snapshot: EngineSnapshot) -> None:
        for listener in self.listeners:
            listener(snapshot)

    async def retire(self, engine: Engine) -> None:
        await self.retiring.wait()

    def restarts(self) -> dict[str, int]:
        return {name: engine.restarts for name, engine in self.actors.items()}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def roll(fleet: Fleet, *names: str, retired: Sequence[Engine] = ()) -> RollingRestart:
    rolling = RollingRestart(cast("Supervisor", fleet))
    rolling.begin(cast("list[EngineActor]", retired), names, ())
    return rolling


async def test_the_next_one_waits_for_the_one_before() -> None:
    fleet = Fleet("a", "b")
    roll(fleet, "a", "b")
    await settle()
    assert fleet.restarts() == {"a": 1, "b": 0}
    fleet.actors["a"].gets(State.READY)
    await settle()
    assert fleet.restarts() == {"a": 1, "b": 1}


async def test_an_engine_that_has_left_the_configuration_is_passed_over() -> None:
    fleet = Fleet("b")
    roll(fleet, "gone", "b")
    await settle()
    assert fleet.restarts() == {"b": 1}


async def test_a_held_engine_blocks_no_other() -> None:
    """It has its new settings when it starts again; a removed one may never."""
    fleet = Fleet("held", "b")
    removed = Engine(fleet, "removed", State.HELD)
    removed.settles.set()
    fleet.actors["held"].gets(State.HELD)
    roll(fleet, "held", "b", retired=[removed])
    await settle()
    assert fleet.restarts() == {"held": 0, "b": 1}


async def test_no_engine_is_sent_into_a_closed_gate_and_others_do_not_wait_for_it() -> None:
    fleet = Fleet("a", "b")
    fleet.actors["a"].may_go = False
    roll(fleet, "a", "b")
    await settle()
    assert fleet.restarts() == {"a": 0, "b": 1}
    fleet.actors["b"].gets(State.READY)
    await settle()
    assert fleet.restarts() == {"a": 0, "b": 1}
    assert [(e.subject, e.kind) for e in fleet.journal.entries()] == [("a", "restart_waits")]
    fleet.actors["a"].may_go = True
    fleet.actors["b"].gets(State.READY)  # anything that happens
    await settle()
    assert fleet.restarts() == {"a": 1, "b": 1}


async def test_what_a_person_has_stopped_stays_stopped() -> None:
    fleet = Fleet("a")
    fleet.actors["a"].wanted = False
    roll(fleet, "a")
    await settle()
    assert fleet.restarts() == {"a": 0}


async def test_the_end_of_an_engine_that_has_come_back_is_not_waited_for() -> None:
    fleet = Fleet("b")
    back = Engine(fleet, "back", State.DRAINING)
    rolling = roll(fleet, retired=[back])
    await settle()
    fleet.actors["back"] = back
    rolling.begin([], ["b"], ["back"])
    await settle()
    assert (back.starts, fleet.restarts()["b"]) == (1, 1)
