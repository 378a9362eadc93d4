"""An engine that sleeps: what is looked at before, meanwhile and after, and what each failure leads to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.engine.lifecycle import Event, State
from memoria.engine.start import Pauses
from memoria.errors import Problem, UnavailableError
from tests.fakes import GIB, until
from tests.unit.actor_bench import Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.host.on_demand, made.host.sleep_level = True, 1
    made.pauses = Pauses(core_grace=0.01)
    made.actor = made.run()
    made.actor.start()
    await made.until(S.DORMANT)
    made.actor.schedule(Event.WAKE)
    await made.until(S.READY)
    yield made
    await made.close()


async def asleep(bench: Bench) -> None:
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.DOZING, S.ASLEEP)


async def test_it_sleeps_and_wakes_in_the_same_process(bench: Bench) -> None:
    pid, started = bench.actor.snapshot.pid, bench.actor.snapshot.start_seconds
    await asleep(bench)
    snapshot = bench.actor.snapshot
    assert (snapshot.pid, snapshot.sleep.asleep_bytes, snapshot.is_healthy) == (pid, GIB, True)
    assert bench.host.tickets[-1].left
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.READY)
    assert bench.host.orders == ["sleep", "wake"]
    assert (bench.actor.snapshot.pid, bench.actor.snapshot.start_seconds) == (pid, started)
    assert bench.actor.snapshot.sleep.wake_seconds is not None
    assert all(ticket.left for ticket in bench.host.tickets)
    kill(bench.actor)  # what it gave back before is no excuse now
    await bench.until(S.RELEASING, S.DORMANT)
    assert bench.actor.snapshot.diagnosis is not None


@pytest.mark.parametrize(
    "change",
    [
        {"sleep_problem": "/sleep: status 500"},
        {"used": [50 * GIB, 30 * GIB]},
        {"unfit": Problem("it keeps too much")},
        {"samples": [UnavailableError("no answer")]},
    ],
    ids=["refused", "frees half", "plan", "no sample"],
)
async def test_a_failed_sleep_ends_it(bench: Bench, change: dict[str, object]) -> None:
    for name, value in change.items():
        setattr(bench.host, name, value)
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DOZING, S.STOPPING, S.RELEASING, S.DORMANT)
    assert "sleep_failed" in bench.told()
    assert "wake" not in bench.host.orders
    assert (bench.actor.snapshot.retry_at, bench.actor.snapshot.diagnosis) == (None, None)


async def test_a_sleep_that_hangs_ends_in_time(bench: Bench) -> None:
    bench.host.never_sleeps = True
    bench.actor.adopt(bench.host, replace(bench.timeouts, release=0.05), bench.policy)
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DOZING, S.STOPPING)
    assert (await bench.until_told("sleep_failed")).detail == "not asleep in 0.05 s (`timeouts.release`)"


async def test_a_driver_without_figures_does_not_keep_it_awake(bench: Bench) -> None:
    bench.host.used = [None]
    await asleep(bench)
    assert bench.actor.snapshot.sleep.asleep_bytes is None
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.READY)


async def test_a_later_sleep_keeps_about_what_the_first_did(bench: Bench) -> None:
    await asleep(bench)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.READY)
    bench.host.used = [50 * GIB, 2 * GIB]
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DOZING, S.STOPPING, S.DORMANT)


@pytest.mark.parametrize(
    ("samples", "told"),
    [(["b"], "wrong_after_wake"), ([None], "wrong_after_wake"), ([UnavailableError("no")], "wake_failed")],
    ids=["wrong", "nothing", "no answer"],
)
async def test_what_wakes_wrong_is_started_anew(bench: Bench, samples: list[object], told: str) -> None:
    await asleep(bench)
    bench.host.samples = samples  # type: ignore[assignment]
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert told in bench.told()
    assert len(bench.host.starts) == 2


async def test_what_does_not_wake_is_started_anew(bench: Bench) -> None:
    await asleep(bench)
    bench.host.wake_problem = "/wake_up: status 500, out of memory"
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert (await bench.until_told("wake_failed")).detail == bench.host.wake_problem


async def test_without_verification_no_answer_is_compared(bench: Bench) -> None:
    bench.host.verifies_wakes = False
    bench.host.samples = ["a", "b"]
    await asleep(bench)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.READY)


async def test_a_wake_waits_for_memory_and_may_step_back(bench: Bench) -> None:
    await asleep(bench)
    bench.host.gate_open.clear()
    bench.host.problem = Problem("no room")
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING)
    await bench.until_true(lambda snapshot: snapshot.detail == "no room")
    bench.actor.schedule(Event.STEP_BACK)
    await bench.until(S.ASLEEP)
    assert bench.actor.snapshot.is_healthy
    await until(lambda: bench.host.tickets[-1].left)
    assert bench.host.orders == ["sleep", "needs 49"]
    bench.host.gate_open.set()
    bench.actor.schedule(Event.STEP_BACK)  # too late
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.WAKING, S.READY)


async def test_without_host_memory_it_ends(bench: Bench) -> None:
    bench.host.no_host_memory = Problem("no host memory")
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.STOPPING, S.RELEASING, S.DORMANT)
    assert "ends_instead" in bench.told()
    assert bench.host.orders == []


async def test_a_crash_while_asleep(bench: Bench) -> None:
    await asleep(bench)
    kill(bench.actor)
    await bench.until(S.RELEASING, S.DORMANT)
    assert not bench.actor.snapshot.is_healthy


async def test_a_core_that_is_lost_while_asleep(bench: Bench) -> None:
    await asleep(bench)
    assert bench.host.boarding.on_lost is not None
    bench.host.boarding.on_lost()
    await bench.until(S.STOPPING, S.RELEASING, S.DORMANT)
    assert bench.actor.snapshot.diagnosis is not None


async def test_a_stop_of_a_sleeper_and_a_restart(bench: Bench) -> None:
    await asleep(bench)
    bench.actor.restart()
    await bench.until(S.STOPPING, S.RELEASING, S.DORMANT)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.READY)
    bench.host.used = [50 * GIB, GIB]
    await asleep(bench)
    bench.actor.stop()
    await bench.until(S.STOPPING, S.RELEASING, S.STOPPED)


async def test_a_sleeper_that_becomes_resident_wakes(bench: Bench) -> None:
    await asleep(bench)
    bench.host.on_demand = False
    bench.actor.adopt(bench.host, bench.timeouts, bench.policy)
    await bench.until(S.WAKING, S.READY)
