"""An engine on demand: dormant, woken, made to yield; and what goes wrong meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.engine.lifecycle import Event, State
from memoria.engine.start import Pauses
from memoria.errors import Problem
from tests.unit.actor_bench import TOUCHES_THE_DEVICE, Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.host.on_demand = True
    made.actor = made.run()
    made.actor.start()
    await made.until(S.DORMANT)
    yield made
    await made.close()


async def awake(bench: Bench) -> None:
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.QUEUED, S.STARTING, S.READY)


async def test_it_is_dormant_until_it_is_woken(bench: Bench) -> None:
    assert bench.host.starts == []
    assert bench.actor.snapshot.is_healthy
    assert bench.actor.snapshot.detail == "starts when a request comes"
    await awake(bench)
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.STOPPING, S.RELEASING, S.DORMANT)
    assert bench.actor.snapshot.retry_at is None
    assert bench.actor.snapshot.diagnosis is None
    await awake(bench)
    assert len(bench.host.starts) == 2


async def test_it_finishes_its_requests_however_long_they_take(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, drain=0.01)
    await awake(bench)
    bench.actor.adopt(bench.host, bench.timeouts, bench.policy)
    bench.actor.traffic.began()
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING)
    assert bench.host.releasing[-1] is False
    bench.actor.traffic.ended()
    await bench.until(S.STOPPING, S.DORMANT)
    assert "drain_timed_out" not in bench.told()


async def test_connections_that_only_stay_open_do_not_keep_it(bench: Bench) -> None:
    """A WebSocket, say: its core has done nothing for as long as a drain may take."""
    bench.timeouts = replace(bench.timeouts, drain=0.05)
    bench.actor.adopt(bench.host, bench.timeouts, bench.policy)
    await awake(bench)
    bench.actor.traffic.began()
    bench.actor.traffic.works_until = time.monotonic() - 100
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.STOPPING, S.DORMANT)
    assert "drain_timed_out" in bench.told()
    bench.actor.traffic.ended()


async def test_it_may_be_called_off_while_requests_are_in_flight(bench: Bench) -> None:
    await awake(bench)
    bench.actor.traffic.began()
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING)
    bench.actor.schedule(Event.CALL_OFF)
    await bench.until(S.READY)
    kill(bench.actor)  # not taken for an end that was wanted
    await bench.until(S.RELEASING, S.DORMANT)
    assert bench.actor.snapshot.diagnosis is not None


async def test_steps_that_come_too_late_have_no_effect(bench: Bench) -> None:
    for step in (Event.YIELD, Event.CALL_OFF):
        bench.actor.schedule(step)
    await awake(bench)
    bench.actor.schedule(Event.WAKE)
    bench.actor.schedule(Event.CALL_OFF)
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.DORMANT)


async def test_at_the_gate_without_memory_it_lets_others_pass(bench: Bench) -> None:
    bench.host.gate_open.clear()
    bench.host.problem = Problem("no room")
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.QUEUED, S.STARTING)
    await bench.until_true(lambda snapshot: snapshot.is_blocked)
    bench.actor.schedule(Event.STEP_BACK)
    await bench.until(S.STOPPING, S.RELEASING, S.DORMANT)
    assert (bench.actor.snapshot.diagnosis, bench.actor.snapshot.retry_at) == (None, None)
    bench.host.gate_open.set()
    await awake(bench)
    bench.actor.schedule(Event.STEP_BACK)  # past the gate: too late
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.DORMANT)


async def test_after_a_crash_it_waits_for_a_request_and_says_why(bench: Bench) -> None:
    await awake(bench)
    kill(bench.actor)
    await bench.until(S.RELEASING, S.DORMANT)
    snapshot = bench.actor.snapshot
    assert snapshot.retry_at is not None
    assert "SIGKILL" in snapshot.detail
    assert not snapshot.is_healthy
    assert S.BACKOFF not in bench.states
    await awake(bench)
    assert bench.actor.snapshot.is_healthy


async def test_a_crash_while_it_makes_room_is_a_crash(bench: Bench) -> None:
    await awake(bench)
    bench.actor.traffic.began()
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING)
    kill(bench.actor)
    await bench.until(S.RELEASING, S.DORMANT)
    assert bench.actor.snapshot.diagnosis is not None
    bench.actor.traffic.ended()


async def test_one_that_hangs_while_it_makes_room_is_restarted(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, hang=0.1)
    bench.actor.adopt(bench.host, bench.timeouts, bench.policy)
    bench.host.moves = False
    await awake(bench)
    bench.actor.traffic.began()
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING, S.SUSPECT, S.STOPPING, S.RELEASING, S.DORMANT)
    bench.actor.traffic.ended()


async def test_it_is_given_up_after_starts_that_fail(bench: Bench) -> None:
    bench.host.argv = ("/nowhere/vllm",)
    for _ in range(bench.policy.attempts - 1):
        bench.actor.schedule(Event.WAKE)
        await bench.until(S.QUEUED, S.DORMANT)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.FAILED)
    bench.actor.start()
    await bench.until(S.DORMANT)
    assert bench.actor.snapshot.retry_at is None


async def test_a_person_stops_it_in_any_state(bench: Bench) -> None:
    bench.actor.stop()
    await bench.until(S.STOPPED)
    bench.actor.schedule(Event.WAKE)
    bench.actor.start()
    await bench.until(S.DORMANT)
    await awake(bench)
    bench.actor.traffic.began()
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.YIELDING)
    bench.actor.stop()
    await bench.until(S.DRAINING)
    bench.actor.traffic.ended()
    await bench.until(S.STOPPED)


async def test_its_standby_waits_while_it_is_dormant_and_is_its_next_start(bench: Bench) -> None:
    bench.host.standby = True
    await awake(bench)
    await bench.until_told("standby_waiting")
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DORMANT)
    assert bench.actor.snapshot.standby == "waiting"
    bench.actor.schedule(Event.WAKE)
    await bench.until_told("standby_took_over")
    await bench.until(S.READY)


async def test_once_it_is_resident_it_starts(bench: Bench) -> None:
    bench.host.on_demand = False
    bench.actor.adopt(bench.host, bench.timeouts, bench.policy)
    await bench.until(S.QUEUED, S.READY)


async def test_without_a_passenger_it_still_comes_and_goes(bench: Bench) -> None:
    bench.pauses = Pauses()
    bench.host.passenger = False
    bench.host.script = TOUCHES_THE_DEVICE + "ready(); time.sleep(600)"
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.STARTING, S.STOPPING, S.QUEUED, S.READY)
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DORMANT)


async def test_it_waits_for_a_standby_that_still_imports(bench: Bench) -> None:
    bench.host.standby = True
    await awake(bench)
    bench.host.passenger = False  # the standby does not get to the gate yet
    await bench.until_true(lambda snapshot: snapshot.standby == "importing")
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DORMANT)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.STARTING)
    starts = len(bench.host.starts)
    bench.host.boarding.at_gate.set()
    await bench.until_told("standby_took_over")
    await bench.until(S.READY)
    assert len(bench.host.starts) <= starts + 1  # the next standby


async def test_it_starts_anew_where_the_standby_dies_meanwhile(bench: Bench) -> None:
    bench.host.standby = True
    await awake(bench)
    bench.host.passenger = False
    await bench.until_true(lambda snapshot: snapshot.standby == "importing")
    bench.actor.schedule(Event.YIELD)
    await bench.until(S.DORMANT)
    bench.actor.schedule(Event.WAKE)
    await bench.until(S.STARTING)
    bench.host.passenger = True
    os.kill(bench.host.pids[-1], signal.SIGKILL)
    await bench.until(S.READY)
    assert "standby_ended" in bench.told()
