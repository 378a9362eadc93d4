"""What makes an engine wanted, for how long, and what the scheduler is given of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from memoria.config.model import Swap
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import Event, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.traffic import Traffic
from memoria.plan.plan import make_plan
from memoria.preflight.preflight import Deployment
from memoria.supervisor import on_demand
from memoria.supervisor.on_demand import UNKNOWN_START, OnDemand
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.log_lines import Phase
from tests.fakes import until
from tests.unit.commands import SERVE
from tests.unit.plans import config, gpu

S = State


@dataclass
class Actor:
    """Does what it is told at once, up to where a test goes on."""

    bench: Bench
    snapshot: EngineSnapshot
    traffic: Traffic = field(default_factory=Traffic)
    steps: list[Event] = field(default_factory=list)

    @property
    def state(self) -> State:
        return self.snapshot.state

    def schedule(self, step: Event) -> None:
        self.steps.append(step)
        lead_to = {Event.WAKE: S.STARTING, Event.YIELD: S.YIELDING, Event.STEP_BACK: S.STOPPING}
        self.reach(lead_to.get(step, S.READY))

    def reach(self, state: State, **about: Any) -> None:
        self.snapshot = replace(self.snapshot, state=state, **about)
        self.bench.on_demand.on_change(self.snapshot)


class Bench:
    """Two engines of which one may be awake."""

    def __init__(self) -> None:
        made = config({"a": "0.6", "b": "0.6"})
        engines = tuple(replace(engine, on_demand=True) for engine in made.engines)
        made = replace(made, engines=engines, swap=Swap(turn=0.2, patience=9, min_awake=0))
        self.deployment = Deployment(made, make_plan(made, {0: gpu()}), SERVE)
        self.journal = Journal()
        self.actors: dict[str, Any] = {
            name: Actor(self, EngineSnapshot(name, S.STOPPED, 0, on_demand=True)) for name in "ab"
        }
        self.on_demand = OnDemand(lambda: self.actors, lambda: self.deployment, self.journal)
        for actor in self.actors.values():
            actor.reach(S.DORMANT)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    task = asyncio.create_task(made.on_demand.run())
    yield made
    task.cancel()


async def steps(actor: Actor, *expected: Event) -> None:
    await until(lambda: actor.steps == list(expected))


async def test_one_request_is_enough(bench: Bench) -> None:
    a, b = bench.actors.values()
    assert bench.on_demand.want("a") == UNKNOWN_START
    await steps(a, Event.WAKE)
    assert not bench.on_demand.waits("a")
    assert bench.journal.entries()[-1].data == {"cause": "request", "away": "dormant"}
    a.reach(S.READY, start_seconds=4.0)
    assert bench.on_demand.want("a") == 0
    bench.on_demand.want("b")
    await steps(a, Event.WAKE, Event.YIELD)
    assert bench.on_demand.waits("b")
    assert bench.journal.entries()[-1].kind is EventKind.MAKES_ROOM
    a.reach(S.STOPPING)
    a.reach(S.DORMANT)
    await steps(b, Event.WAKE)


async def test_a_busy_one_has_its_turn_and_is_ended_when_it_is_idle(bench: Bench) -> None:
    a = bench.actors["a"]
    a.reach(S.READY)
    a.traffic.began()
    began = time.monotonic()
    bench.on_demand.want("b")
    await steps(a, Event.YIELD)
    assert time.monotonic() - began >= 0.2
    a.reach(S.READY)
    a.traffic.ended()
    bench.on_demand.on_idle("a")
    await steps(a, Event.YIELD, Event.YIELD)


async def test_a_client_that_does_not_come_back_is_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "LEAST_PATIENCE", 0.05)
    monkeypatch.setattr(on_demand, "UNKNOWN_START", 0.0)
    a, _ = bench.actors.values()
    a.reach(S.STOPPING)  # room is on its way
    bench.on_demand.want("b")
    assert bench.on_demand.waits("b")
    await until(lambda: not bench.on_demand.waits("b"))


@pytest.mark.parametrize(
    "about",
    [{"state": S.FETCHING}, {"state": S.DORMANT, "retry_at": 1e10}],  # in the year 2286
)
async def test_one_that_cannot_start_now_leaves_the_room_to_the_other(
    bench: Bench, about: dict[str, Any]
) -> None:
    a, b = bench.actors.values()
    a.reach(**about)
    bench.on_demand.want("a")
    bench.on_demand.want("b")
    await steps(b, Event.WAKE)
    assert a.steps == []


@pytest.mark.parametrize("state", [S.STOPPED, S.FAILED])
async def test_one_that_is_out_of_service_is_not_wanted_any_more(bench: Bench, state: State) -> None:
    a, b = bench.actors.values()
    b.reach(S.READY)
    b.traffic.began()
    bench.on_demand.want("a")
    a.reach(state)
    assert not bench.on_demand.waits("a")


async def test_what_a_person_wants_is_not_forgotten(bench: Bench) -> None:
    bench.actors["b"].reach(S.STARTING)
    bench.on_demand.want("a", "hand")
    assert bench.on_demand.waits("a")
    bench.on_demand.forget("a")
    assert not bench.on_demand.waits("a")


async def test_a_ttl_counts_from_the_end_of_what_a_client_asked_for(bench: Bench) -> None:
    made = bench.deployment.config
    engines = tuple(replace(engine, ttl=0.1) for engine in made.engines)
    bench.deployment = replace(bench.deployment, config=replace(made, engines=engines))
    a, b = bench.actors.values()
    bench.on_demand.keep("a", 600)
    a.reach(S.READY)
    b.reach(S.READY)
    await steps(b, Event.YIELD)
    assert a.steps == []


async def test_a_bug_does_not_end_the_scheduling(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(on_demand, "decide", failing)
        bench.on_demand.want("a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    bench.on_demand.look()
    await steps(bench.actors["a"], Event.WAKE)


async def test_one_that_waits_for_foreign_memory_lets_others_pass(bench: Bench) -> None:
    a, b = bench.actors.values()
    bench.on_demand.want("a")
    await steps(a, Event.WAKE)
    bench.on_demand.want("b")
    blocked = Diagnosis("no room", "stop pid 1", "yes")
    a.reach(S.STARTING, phase=Phase.AT_GATE, detail="no room", diagnosis=blocked)
    await steps(a, Event.WAKE, Event.STEP_BACK)
    assert bench.journal.entries()[-1].data == {"cause": "blocked"}
    a.reach(S.DORMANT, phase=None, detail="", diagnosis=None)
    await steps(b, Event.WAKE)
    assert bench.on_demand.waits("a")  # for a turn: it would be in the way again
    b.reach(S.READY)
    await steps(b, Event.WAKE, Event.YIELD)
    b.reach(S.DORMANT)
    await steps(a, Event.WAKE, Event.STEP_BACK, Event.WAKE)
