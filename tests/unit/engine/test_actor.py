"""What an engine's actor does to get its engine ready, and when it crashes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.model import Restart
from memoria.engine import start
from memoria.engine.lifecycle import State
from memoria.errors import Problem
from memoria.vllm.log_lines import Phase
from tests.unit.actor_bench import NEVER_READY, SERVES, TOUCHES_THE_DEVICE, Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.close()


# ------------------------------------------------------------------ starting


async def test_an_engine_gets_ready(bench: Bench) -> None:
    actor = await bench.ready()
    assert bench.states == [S.QUEUED, S.STARTING, S.READY]
    snapshot = actor.snapshot
    assert snapshot.pid in actor.pids()
    assert snapshot.start_id == bench.host.starts[0]
    assert snapshot.start_seconds is not None
    assert (snapshot.phase, snapshot.restarts, snapshot.diagnosis) == (None, 0, None)
    (ticket,) = bench.host.tickets
    assert ticket.passed
    assert ticket.left


async def test_the_log_tells_phase_and_figures(bench: Bench) -> None:
    bench.host.script = "print('Available KV cache memory: 4.25 GiB'); ready(); time.sleep(600)"
    await bench.ready()
    await bench.until_true(lambda snapshot: snapshot.figures.kv_gib == 4.25)


async def test_an_engine_waits_at_the_gate_and_tells_what_for(bench: Bench) -> None:
    bench.host.gate_open.clear()
    bench.host.problem = Problem("no room", ("pid 1",))
    actor = bench.run()
    actor.start()
    await bench.until_phase(Phase.AT_GATE)
    assert actor.snapshot.detail == "no room"
    assert bench.journal.entries()[-1].detail == "no room; pid 1"
    bench.host.gate_open.set()
    await bench.until(S.READY)
    assert actor.snapshot.detail == ""


async def test_an_engine_without_a_passenger_queues_before_its_next_start(bench: Bench) -> None:
    bench.host.passenger = False
    bench.host.gate_open.clear()
    bench.host.script = TOUCHES_THE_DEVICE + SERVES
    bench.run().start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.QUEUED)
    assert len(bench.host.starts) == 1
    bench.host.gate_open.set()
    await bench.until(S.STARTING, S.READY)
    assert bench.told().count("no_passenger") == 1
    assert S.BACKOFF not in bench.states


async def test_a_start_that_takes_too_long_is_killed_and_tried_again(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, start=0.05)
    bench.host.script = NEVER_READY
    actor = bench.run()
    actor.start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.BACKOFF)
    assert actor.snapshot.diagnosis is not None
    assert actor.snapshot.diagnosis.cause == "not ready in 0.05 s (at the GPU gate)"


async def test_an_executable_that_is_not_there_is_tried_again_then_given_up(bench: Bench) -> None:
    bench.host.argv = ("/nowhere/vllm",)
    actor = bench.run()
    actor.start()
    await bench.until(S.FAILED)
    assert bench.states.count(S.STARTING) == bench.policy.attempts
    assert actor.snapshot.detail == (
        "cannot start /nowhere/vllm: No such file or directory; never ready in 3 starts"
    )
    assert bench.host.forgotten == bench.host.starts


async def test_a_log_that_cannot_be_written_is_told(bench: Bench) -> None:
    bench.log.path.mkdir()
    actor = bench.run()
    actor.start()
    await bench.until(S.FAILED)
    assert actor.snapshot.detail.startswith("cannot write the log file")


async def test_every_state_has_its_work(bench: Bench) -> None:
    assert list(bench.run()._work) == list(S)


# ------------------------------------------------------------------ crashing


async def test_a_crashed_engine_comes_back(bench: Bench) -> None:
    actor = await bench.ready()
    kill(actor)
    await bench.until(S.RELEASING)
    assert actor.snapshot.detail == "killed by SIGKILL"
    await bench.until(S.BACKOFF, S.QUEUED, S.STARTING, S.READY)
    assert actor.snapshot.restarts == 1
    assert actor.snapshot.diagnosis is None
    assert len(set(bench.host.starts)) == 2


async def test_an_hour_of_ready_makes_the_next_delay_the_first_again(bench: Bench) -> None:
    """What the actor took down as the moment of ready is put back by that time."""
    bench.policy = Restart(initial=0.05, cap=10.0, attempts=3, reset=600.0)
    actor = await bench.ready()
    delays = []
    for ready_for in (0.0, 0.0, 0.0, 599.0, 3600.0, 0.0):
        assert actor._start.ready_at is not None
        actor._start.ready_at -= ready_for
        kill(actor)
        await bench.until(S.BACKOFF)
        assert actor.snapshot.retry_at is not None
        delays.append(round(actor.snapshot.retry_at - actor.snapshot.since, 6))
        await bench.until(S.READY)
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.05, 0.1]


async def test_a_crash_before_ready_is_diagnosed_and_after_some_attempts_final(bench: Bench) -> None:
    bench.host.script = "print('RuntimeError: something unheard of'); sys.exit(1)"
    actor = bench.run()
    actor.start()
    await bench.until(S.FAILED)
    await bench.stopped()
    assert bench.states.count(S.STARTING) == 3
    assert actor.snapshot.diagnosis is not None
    assert actor.snapshot.diagnosis.cause == "RuntimeError: something unheard of"
    assert actor.snapshot.detail == "RuntimeError: something unheard of; never ready in 3 starts"
    assert actor.snapshot.pid is None


async def test_a_configuration_error_is_final_at_once(bench: Bench) -> None:
    bench.host.script = "print('api_server.py: error: unrecognized arguments: --nonsense'); sys.exit(2)"
    bench.run().start()
    await bench.until(S.FAILED)
    assert bench.states.count(S.STARTING) == 1


async def test_a_person_gives_a_failed_engine_all_its_attempts_again(bench: Bench) -> None:
    bench.host.script = "sys.exit(1)"
    actor = bench.run()
    actor.start()
    await bench.until(S.FAILED)
    actor.start()
    await bench.until(S.QUEUED, S.FAILED)
    assert bench.states.count(S.STARTING) == 6


async def test_a_start_that_a_neighbour_spoiled_does_not_count(bench: Bench) -> None:
    bench.policy = replace(bench.policy, attempts=1)
    bench.host.gate_open.clear()
    bench.host.script = "time.sleep(600)"
    actor = bench.run()
    actor.start()
    await bench.until_phase(Phase.AT_GATE)
    bench.host.tickets[0].spoiled = True
    bench.host.script = SERVES
    kill(actor)
    bench.host.gate_open.set()
    await bench.until(S.BACKOFF, S.READY)


async def test_memory_that_does_not_come_back_holds_the_engine_until_it_does(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, release=0.05)
    actor = await bench.ready()
    bench.host.released.clear()
    kill(actor)
    await bench.until(S.RELEASING, S.HELD)
    assert bench.host.releasing[-1] is True
    bench.host.released.set()
    await bench.until(S.BACKOFF, S.READY)
    assert bench.host.releasing[-1] is False


async def test_what_outlives_its_leader_is_killed_and_told(bench: Bench) -> None:
    bench.host.script = """
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
ready()
time.sleep(600)
"""
    actor = await bench.ready()
    (child,) = actor.pids() - {actor.snapshot.pid}
    kill(actor)
    await bench.until(S.BACKOFF)
    entry = next(e for e in bench.journal.entries() if e.kind == "orphans_killed")
    assert entry.detail == f"pids [{child}]"
    assert not actor.pids()


async def test_what_ends_a_moment_after_its_leader_is_not_worth_a_word(bench: Bench) -> None:
    """As Python's resource tracker does, in the group that is killed."""
    bench.host.script = """
if os.fork() == 0:
    time.sleep(600)
ready()
time.sleep(600)
"""
    actor = await bench.ready()
    assert len(actor.pids()) == 2
    kill(actor)
    await bench.until(S.BACKOFF)
    assert "orphans_killed" not in bench.told()
    assert not actor.pids()


async def test_shared_memory_that_a_killed_engine_cannot_remove_is_removed(bench: Bench) -> None:
    bench.host.script = (
        """
from multiprocessing.shared_memory import SharedMemory
held = SharedMemory(create=True, size=4096)
print("made", held.name)
"""
        + SERVES
    )
    actor = await bench.ready()
    made = next(line.split()[1] for line in actor.last_log() if line.startswith("made"))
    file = Path("/dev/shm") / made
    assert file.exists()
    os.killpg(actor.snapshot.pid or 0, signal.SIGKILL)
    await bench.until(S.RELEASING, S.BACKOFF)
    assert not file.exists()


# ------------------------------------------------------------------ bugs


async def test_a_bug_in_a_states_work_does_not_end_the_actor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug in the probe")

    monkeypatch.setattr(bench.host, "until_answering", fail)
    actor = bench.run()
    actor.start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.BACKOFF)
    assert actor.snapshot.diagnosis is not None
    assert actor.snapshot.diagnosis.cause == "internal error: RuntimeError('a bug in the probe')"
    actor.stop()
    await bench.stopped()


async def test_a_bug_between_two_states_does_not_end_the_actor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = bench.run()
    with monkeypatch.context() as patch:
        patch.setattr(bench.host, "set_releasing", lambda: None)  # raises TypeError when called
        actor.start()
        await asyncio.sleep(0)
    actor.start()
    await bench.until(S.READY)


async def test_a_log_that_cannot_be_read_does_not_hide_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bench.log, "follow", BrokenFollower)
    actor = await bench.ready()
    kill(actor)
    await bench.until(S.RELEASING, S.BACKOFF)
    assert "cannot be read" in caplog.text


async def test_a_bug_in_the_watch_of_the_log_does_not_hide_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug in the watch")

    monkeypatch.setattr(start, "watch", fail)
    actor = await bench.ready()
    kill(actor)
    await bench.until(S.RELEASING, S.BACKOFF)
    assert actor.snapshot.diagnosis is not None
    assert "a bug in memoria while it watched" in caplog.text


class BrokenFollower:
    def new_lines(self) -> list[str]:
        raise OSError("an input/output error")
