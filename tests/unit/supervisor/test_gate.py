"""The GPU gate: one engine inside at a time, in order, and nothing left behind by one that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from memoria.engine.events import Journal
from memoria.errors import Problem
from memoria.supervisor.gate import GpuGate, Ticket
from tests.fakes import FakeClock

NO_ROOM = Problem("no room")


class Engine:
    """Enters the gate with a check that a test can hold up or let fail."""

    def __init__(self, gate: GpuGate, name: str) -> None:
        self.ticket: Ticket = gate.ticket(name)
        self.problem: Problem | None = None
        self.may_check = asyncio.Event()
        self.may_check.set()
        self.checks = 0
        self.blocked: list[Problem] = []

    def arrive(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.ticket.enter(self._check, self.blocked.append))

    async def _check(self) -> Problem | None:
        self.checks += 1
        await self.may_check.wait()
        return self.problem


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def gate(clock: FakeClock, journal: Journal) -> Iterator[GpuGate]:
    gate = GpuGate("gpu 0", journal, overtake_after=60.0, recheck=0.01, clock=clock)
    yield gate
    assert "inside=None" in repr(gate), "a ticket was left inside"


async def settle() -> None:
    """Lets every task run until it waits for something that is not there yet."""
    for _ in range(20):
        await asyncio.sleep(0)


async def passed(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        await task


async def test_engines_pass_in_the_order_of_their_tickets(gate: GpuGate) -> None:
    first, second = Engine(gate, "first"), Engine(gate, "second")
    late = second.arrive()
    await settle()
    assert not late.done()
    await passed(first.arrive())
    await settle()
    assert not late.done()
    first.ticket.leave()
    await passed(late)
    second.ticket.leave()


async def test_no_other_is_inside_until_the_one_inside_leaves(gate: GpuGate, journal: Journal) -> None:
    engines = [Engine(gate, str(number)) for number in range(4)]
    tasks = [engine.arrive() for engine in engines]
    for number, engine in enumerate(engines):
        await passed(tasks[number])
        await settle()
        assert [task.done() for task in tasks] == [True] * (number + 1) + [False] * (3 - number)
        engine.ticket.leave()
    reported = [(entry.subject, entry.kind) for entry in journal.entries()]
    assert reported == [(str(n), what) for n in range(4) for what in ("gate_passed", "gate_left")]


async def test_no_engine_passes_while_memory_is_released(gate: GpuGate) -> None:
    engine = Engine(gate, "engine")
    gate.set_releasing("dead", True)
    gate.set_releasing("dying", True)
    waiting = engine.arrive()
    gate.set_releasing("dead", False)
    await settle()
    assert not waiting.done()
    assert engine.checks == 0
    gate.set_releasing("dying", False)
    await passed(waiting)
    engine.ticket.leave()


async def test_a_release_that_begins_during_the_check_sends_the_engine_back(gate: GpuGate) -> None:
    engine = Engine(gate, "engine")
    engine.may_check.clear()
    waiting = engine.arrive()
    await settle()
    gate.set_releasing("dead", True)
    engine.may_check.set()
    await settle()
    assert not waiting.done()
    gate.set_releasing("dead", False)
    await passed(waiting)
    assert engine.checks == 2
    engine.ticket.leave()


async def test_a_neighbours_release_spoils_the_one_inside(gate: GpuGate) -> None:
    inside, waiting = Engine(gate, "inside"), Engine(gate, "waiting")
    await passed(inside.arrive())
    task = waiting.arrive()
    gate.set_releasing("inside", True)
    assert [engine.ticket.spoiled for engine in (inside, waiting)] == [False, False]
    gate.set_releasing("dead", True)
    assert [engine.ticket.spoiled for engine in (inside, waiting)] == [True, False]
    gate.set_releasing("inside", False)
    gate.set_releasing("dead", False)
    inside.ticket.leave()
    await passed(task)
    waiting.ticket.leave()


async def test_a_blocked_engine_lets_others_pass_and_tries_again(gate: GpuGate) -> None:
    large, small = Engine(gate, "large"), Engine(gate, "small")
    large.problem = NO_ROOM
    waiting = large.arrive()
    await passed(small.arrive())
    assert large.blocked[0] is NO_ROOM
    large.problem = None
    small.ticket.leave()
    await passed(waiting)
    large.ticket.leave()


async def test_two_blocked_engines_do_not_wake_each_other_without_end(journal: Journal) -> None:
    gate = GpuGate("gpu 0", journal, recheck=600.0)
    engines = [Engine(gate, str(number)) for number in range(3)]
    for engine in engines:
        engine.problem = NO_ROOM
    tasks = [engine.arrive() for engine in engines]
    for _ in range(5):
        await settle()
    assert [engine.checks for engine in engines] == [1, 1, 1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_that_does_not_arrive_is_passed_by_when_patience_ends(
    gate: GpuGate, clock: FakeClock
) -> None:
    slow, quick = Engine(gate, "slow"), Engine(gate, "quick")
    waiting = quick.arrive()
    await settle()
    clock.now += 59.9
    gate.set_releasing("other", True)
    gate.set_releasing("other", False)  # makes everybody look again
    await settle()
    assert not waiting.done()
    clock.now += 0.2
    await passed(waiting)
    quick.ticket.leave()
    slow.ticket.leave()


async def test_one_that_has_arrived_is_never_passed_by(gate: GpuGate, clock: FakeClock) -> None:
    inside, second, third = (Engine(gate, name) for name in ("inside", "second", "third"))
    await passed(inside.arrive())
    waiting = third.arrive()
    await settle()
    clock.now += 3600
    before = second.arrive()
    await settle()
    inside.ticket.leave()
    await passed(before)
    await settle()
    assert not waiting.done()
    second.ticket.leave()
    await passed(waiting)
    third.ticket.leave()


async def test_one_that_dies_before_it_arrives_frees_its_place(gate: GpuGate) -> None:
    dead, engine = Engine(gate, "dead"), Engine(gate, "engine")
    waiting = engine.arrive()
    await settle()
    dead.ticket.leave()
    await passed(waiting)
    engine.ticket.leave()


async def test_leaving_twice_or_outside_does_no_harm(gate: GpuGate, journal: Journal) -> None:
    engine, other = Engine(gate, "engine"), Engine(gate, "other")
    await passed(engine.arrive())
    other.ticket.leave()
    assert journal.entries()[-1].kind == "gate_passed"
    engine.ticket.leave()
    engine.ticket.leave()
    assert [entry.kind for entry in journal.entries()] == ["gate_passed", "gate_left"]


async def test_being_cancelled_while_waiting_leaks_nothing(gate: GpuGate) -> None:
    first, second, third = (Engine(gate, name) for name in ("first", "second", "third"))
    await passed(first.arrive())
    cancelled, waiting = second.arrive(), third.arrive()
    await settle()
    cancelled.cancel()
    second.ticket.leave()
    first.ticket.leave()
    await passed(waiting)
    assert cancelled.cancelled()
    third.ticket.leave()


async def test_being_cancelled_while_checking_leaks_nothing(gate: GpuGate) -> None:
    first, second = Engine(gate, "first"), Engine(gate, "second")
    first.may_check.clear()
    cancelled, waiting = first.arrive(), second.arrive()
    await settle()
    assert first.checks == 1
    cancelled.cancel()
    first.ticket.leave()
    await passed(waiting)
    second.ticket.leave()


async def test_a_check_that_fails_leaks_nothing(gate: GpuGate) -> None:
    async def check() -> Problem | None:
        raise RuntimeError("a bug")

    broken, engine = gate.ticket("broken"), Engine(gate, "engine")
    with pytest.raises(RuntimeError, match="a bug"):
        await broken.enter(check, lambda _: None)
    broken.leave()
    await passed(engine.arrive())
    engine.ticket.leave()


async def test_a_start_that_failed_before_its_neighbours_end_was_seen_is_spoiled_all_the_same(
    gate: GpuGate,
) -> None:
    failed = Engine(gate, "failed")
    await passed(failed.arrive())
    gate.set_releasing("failed", True)  # its own memory is on its way back; it is not judged yet
    spoiled = [failed.ticket.spoiled]
    gate.set_releasing("neighbour", True)
    assert [*spoiled, failed.ticket.spoiled] == [False, True]
    failed.ticket.leave()


async def test_what_moved_before_it_passed_spoils_no_ticket(gate: GpuGate) -> None:
    engine = Engine(gate, "engine")
    engine.ticket.spoiled = True
    await passed(engine.arrive())
    assert not engine.ticket.spoiled
    engine.ticket.leave()


async def test_a_stop_waits_until_no_neighbour_is_inside(gate: GpuGate) -> None:
    inside, reported = Engine(gate, "inside"), list[str]()
    await passed(inside.arrive())
    await gate.until_alone("inside", reported.append)  # it need not wait for itself
    waiting = asyncio.ensure_future(gate.until_alone("other", reported.append))
    await settle()
    assert reported == ["inside"]
    assert not waiting.done()
    inside.ticket.leave()
    await passed(waiting)


async def test_a_restart_waits_until_no_neighbours_memory_moves(gate: GpuGate) -> None:
    inside, reported = Engine(gate, "inside"), list[str]()
    await passed(inside.arrive())
    waiting = asyncio.ensure_future(gate.until_calm("other", reported.append))
    await settle()
    gate.set_releasing("dead", True)
    gate.set_releasing("other", True)  # it need not wait for itself
    inside.ticket.leave()
    await settle()
    assert reported == ["inside is behind the gate", "the memory of dead is on its way back"]
    assert not waiting.done()
    gate.set_releasing("dead", False)
    await passed(waiting)
    assert gate.is_calm("other")


async def test_a_neighbour_that_ends_itself_is_not_waited_for(gate: GpuGate) -> None:
    inside = Engine(gate, "inside")
    await passed(inside.arrive())
    gate.set_releasing("inside", True, start="1")
    await gate.until_alone("other", lambda _: None)
    inside.ticket.leave()


async def test_an_engine_that_has_come_again_does_not_open_what_its_predecessor_closed(gate: GpuGate) -> None:
    gate.set_releasing("engine", True, start="1")
    gate.set_releasing("engine", True, start="2")
    gate.set_releasing("engine", False, start="2")
    free = [gate.is_calm("other")]
    gate.set_releasing("engine", False, start="1")
    assert [*free, gate.is_calm("other")] == [False, True]
