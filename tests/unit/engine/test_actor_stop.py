"""What an engine's actor does when a person asks it to stop or to start again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.model import Restart
from memoria.engine.lifecycle import State
from memoria.vllm.log_lines import Phase
from tests.unit.actor_bench import DEAF, NEVER_READY, SERVES, Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


async def test_a_stop_lets_requests_finish_and_asks_before_it_kills(bench: Bench) -> None:
    bench.host.script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); " + SERVES
    actor = await bench.ready()
    actor.traffic.began()
    actor.stop()
    await bench.until(S.DRAINING)
    assert actor.pids()
    actor.traffic.ended()
    await bench.until(S.STOPPING, S.RELEASING, S.STOPPED)
    await bench.stopped()
    assert actor.pids() == set()
    assert actor.snapshot.address is None
    assert "killed" not in bench.told()


async def test_a_drain_ends_in_its_time(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, drain=0.05)
    actor = await bench.ready()
    actor.traffic.began()
    actor.stop()
    await bench.until(S.STOPPED)
    assert "drain_timed_out" in bench.told()


async def test_an_engine_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, stop=0.05)
    bench.host.script = DEAF + SERVES
    actor = await bench.ready()
    actor.stop()
    await bench.until(S.STOPPED)
    assert "killed" in bench.told()
    assert actor.pids() == set()


async def test_a_second_stop_kills_now(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, drain=600.0, stop=600.0)
    bench.host.script = DEAF + SERVES
    actor = await bench.ready()
    actor.traffic.began()
    actor.stop()
    await bench.until(S.DRAINING)
    actor.stop(now=True)
    await bench.until(S.STOPPING, S.STOPPED)


async def test_a_second_stop_ends_the_grace(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, stop=600.0)
    bench.host.script = DEAF + SERVES
    actor = await bench.ready()
    actor.stop()
    await bench.until(S.STOPPING)
    actor.stop(now=True)
    await bench.until(S.STOPPED)


async def test_a_stop_during_the_start_kills_at_once(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, drain=600.0, stop=600.0)
    bench.host.script = DEAF + NEVER_READY
    actor = bench.run()
    actor.start()
    await bench.until_phase(Phase.AT_GATE)
    actor.stop()
    await bench.until(S.STOPPING, S.RELEASING, S.STOPPED)
    assert S.DRAINING not in bench.states
    assert all(ticket.left for ticket in bench.host.tickets)


async def test_a_stop_before_the_spawn_leaves_nothing(bench: Bench) -> None:
    actor = bench.run()
    actor.start()
    actor.stop()
    await bench.until(S.STOPPED)
    assert bench.host.starts == []


async def test_a_stop_in_backoff_is_a_stop(bench: Bench) -> None:
    bench.policy = Restart(initial=600.0, cap=600.0)
    actor = await bench.ready()
    kill(actor)
    await bench.until(S.BACKOFF)
    assert actor.snapshot.retry_at is not None
    actor.stop()
    await bench.until(S.STOPPED)
    assert actor.snapshot.retry_at is None


async def test_a_crash_while_draining_is_still_a_stop(bench: Bench) -> None:
    actor = await bench.ready()
    actor.traffic.began()
    actor.stop()
    await bench.until(S.DRAINING)
    kill(actor)
    await bench.until(S.RELEASING, S.STOPPED)
    assert actor.snapshot.diagnosis is None


async def test_a_daemon_need_not_wait_for_memory_that_is_held(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, release=0.05)
    actor = await bench.ready()
    bench.host.released.clear()
    actor.stop()
    await bench.until(S.HELD)
    await bench.stopped()


async def test_whoever_is_held_is_not_at_rest(bench: Bench) -> None:
    """Its device would stay closed for ever if its actor ended now."""
    bench.timeouts = replace(bench.timeouts, release=0.05)
    actor = await bench.ready()
    bench.host.released.clear()
    actor.stop()
    await bench.until(S.HELD)
    resting = asyncio.ensure_future(actor.at_rest())
    await asyncio.wait({resting}, timeout=0.01)
    assert not resting.done()
    bench.host.released.set()
    await bench.until(S.STOPPED)
    await resting
    assert bench.host.releasing[-1] is False


async def test_a_restart_is_no_crash(bench: Bench) -> None:
    actor = await bench.ready()
    actor.restart()
    await bench.until(S.DRAINING, S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert S.BACKOFF not in bench.states
    assert actor.snapshot.restarts == 1
    assert len(bench.host.starts) == 2


async def test_a_start_asked_while_it_stops_follows_the_stop(bench: Bench) -> None:
    actor = await bench.ready()
    actor.traffic.began()
    actor.stop()
    await bench.until(S.DRAINING)
    actor.start()
    actor.traffic.ended()
    await bench.until(S.STOPPING, S.RELEASING, S.QUEUED, S.READY)


async def test_a_restart_serves_on_until_it_is_its_turn(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.restart()
    await bench.until_told("waits_for_neighbour")
    assert actor.state is S.READY
    assert actor.snapshot.detail == "restarts in its turn: neighbour is behind the gate"
    bench.host.alone.set()
    await bench.until(S.DRAINING, S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert actor.snapshot.detail == ""


async def test_a_stop_that_is_asked_for_serves_on_until_it_is_its_turn(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.stop(in_turn=True)
    await bench.until_told("waits_for_neighbour")
    assert actor.state is S.READY
    bench.host.alone.set()
    await bench.until(S.DRAINING, S.STOPPING, S.STOPPED)


@pytest.mark.parametrize("now", [True, False])
async def test_nobody_else_waits_for_a_turn(bench: Bench, now: bool) -> None:
    """`--now`; and the end of the daemon, which drains at once."""
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.restart()
    await bench.until_told("waits_for_neighbour")
    actor.stop(now=now)
    await bench.until(S.STOPPING if now else S.DRAINING)
    bench.host.alone.set()
    await bench.until(S.STOPPED)


async def test_a_stop_that_waits_for_its_turn_can_be_called_off(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.stop(in_turn=True)
    await bench.until_told("waits_for_neighbour")
    actor.start()
    assert "stop_called_off" in bench.told()
    bench.host.alone.set()
    actor.restart()
    await bench.until(S.DRAINING, S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert len(bench.host.starts) == 2


async def test_a_crash_while_a_restart_waits_is_followed_by_one_start_alone(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.restart()
    await bench.until_told("waits_for_neighbour")
    kill(actor)
    await bench.until(S.RELEASING, S.BACKOFF, S.QUEUED, S.READY)
    bench.host.alone.set()
    actor.stop()
    await bench.until(S.DRAINING, S.STOPPING, S.STOPPED)
    assert len(bench.host.starts) == 2
