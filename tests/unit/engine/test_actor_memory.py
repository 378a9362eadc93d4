"""What an engine's actor does about the device's memory: its neighbours' and its own, and about bugs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.engine.lifecycle import State
from memoria.engine.process.process import EngineProcess
from memoria.engine.start import Pauses
from memoria.errors import Problem
from memoria.vllm.log_lines import Phase
from tests.fakes import until
from tests.unit.actor_bench import DEAF, NEVER_READY, SERVES, Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.pauses = Pauses(after_bug=0.0, retry_held=0.01)
    yield made
    await made.close()


def keeps_gate_closed(bench: Bench) -> bool:
    return bench.host.releasing[-1]


# ------------------------------------------------------------------ neighbours


async def test_nobody_passes_from_the_moment_that_it_is_asked_to_end(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, stop=600.0)
    bench.host.script = DEAF + SERVES
    actor = await bench.ready()
    assert not keeps_gate_closed(bench)
    actor.stop()
    await bench.until(S.STOPPING)
    assert keeps_gate_closed(bench)
    actor.stop(now=True)
    await bench.until(S.STOPPED)
    assert not keeps_gate_closed(bench)


async def test_a_start_that_has_not_passed_the_gate_disturbs_nobody(bench: Bench) -> None:
    bench.host.gate_open.clear()
    bench.host.script = NEVER_READY
    actor = bench.run()
    actor.start()
    await bench.until_phase(Phase.AT_GATE)
    actor.stop()
    await bench.until(S.STOPPING, S.RELEASING, S.STOPPED)
    assert True not in bench.host.releasing


async def test_a_stop_waits_for_a_neighbour_that_measures(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.stop()
    await bench.until(S.DRAINING)
    await bench.until_true(lambda snapshot: "neighbour" in snapshot.detail)
    assert not keeps_gate_closed(bench)
    bench.host.alone.set()
    await bench.until(S.STOPPING, S.STOPPED)


async def test_a_stop_that_is_to_be_now_waits_for_nobody(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.alone.clear()
    actor.stop()
    await bench.until_told("waits_for_neighbour")
    actor.stop(now=True)
    await bench.until(S.STOPPING, S.STOPPED)


async def test_memory_is_on_its_way_back_when_the_core_is_gone_not_when_its_leader_notices(
    bench: Bench,
) -> None:
    await bench.ready()
    assert bench.host.boarding.on_lost is not None
    bench.host.boarding.on_lost()
    assert keeps_gate_closed(bench)
    assert bench.actor.snapshot.state is S.READY


async def test_a_spoiled_start_that_took_too_much_starts_again_and_is_not_counted(bench: Bench) -> None:
    bench.policy = replace(bench.policy, attempts=1)
    bench.host.held_problems = [Problem("it holds 80.0 GiB")]
    bench.host.gate_open.clear()
    actor = bench.run()
    actor.start()
    await bench.until_phase(Phase.AT_GATE)
    bench.host.tickets[0].spoiled = True
    bench.host.gate_open.set()
    await bench.until(S.STOPPING, S.RELEASING, S.QUEUED, S.READY)
    assert actor.snapshot.restarts == 1
    assert (await bench.until_told("starts_again")).detail == "it holds 80.0 GiB"


async def test_a_start_that_nobody_spoiled_is_not_looked_at(bench: Bench) -> None:
    bench.host.held_problems = [Problem("it holds 80.0 GiB")]
    await bench.ready()
    assert bench.states == [S.QUEUED, S.STARTING, S.READY]


async def test_what_it_waited_for_at_the_gate_is_over_once_it_has_passed(bench: Bench) -> None:
    bench.host.gate_open.clear()
    bench.host.problem = Problem("no room")
    bench.host.script = NEVER_READY
    actor = bench.run()
    actor.start()
    await bench.until_true(lambda snapshot: snapshot.diagnosis is not None)
    bench.host.gate_open.set()
    await bench.until_true(lambda snapshot: snapshot.diagnosis is None)
    assert actor.snapshot.detail == ""


# ------------------------------------------------------------------ held


async def test_memory_that_is_held_is_an_error_that_names_the_holder(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.timeouts = replace(bench.timeouts, release=0.05)
    actor = await bench.ready()
    pid = actor.snapshot.pid
    bench.host.released.clear()
    kill(actor)
    await bench.until(S.HELD)
    assert (await bench.until_told("memory_held")).detail == f"pid {pid} holds 1.0 GiB"
    assert [r.levelname for r in caplog.records if ": held:" in r.message] == ["ERROR"]
    assert actor.snapshot.diagnosis is not None
    bench.host.released.set()
    await bench.until(S.BACKOFF, S.READY)
    assert actor.snapshot.diagnosis is None


async def test_a_leader_that_no_signal_ends_holds_its_device_until_it_has_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in the kernel, waiting for a driver."""
    bench.timeouts = replace(bench.timeouts, stop=0.01, release=0.05)
    bench.host.script = DEAF + SERVES
    actor = await bench.ready()
    with monkeypatch.context() as patch:
        patch.setattr(EngineProcess, "kill", lambda _: None)
        actor.stop()
        await bench.until(S.STOPPING, S.HELD)
        await bench.stopped()  # the daemon need not wait
        assert keeps_gate_closed(bench)
    await bench.until(S.STOPPED)
    assert not keeps_gate_closed(bench)


async def test_a_bug_while_memory_is_on_its_way_back_does_not_open_the_gate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fail(alive: Callable[[], Awaitable[Collection[int]]], known: Collection[int]) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("a bug")

    actor = await bench.ready()
    with monkeypatch.context() as patch:
        patch.setattr(bench.host, "until_released", fail)
        kill(actor)
        await bench.until(S.RELEASING, S.HELD)
        await until(lambda: tries > 3)
        assert keeps_gate_closed(bench)
        assert actor.snapshot.state is S.HELD
    await bench.until(S.BACKOFF, S.READY)


# ------------------------------------------------------------------ bugs


async def test_a_bug_in_the_watch_over_a_ready_engine_does_not_end_the_watch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.timeouts = replace(bench.timeouts, hang=0.12)
    with monkeypatch.context() as patch:
        patch.setattr("memoria.engine.hang.HangDetector.see", lambda *_: 1 / 0)
        await bench.ready()
        await bench.until(S.SUSPECT, S.READY, S.SUSPECT)
    await bench.until(S.READY)
    assert bench.actor.snapshot.pid is not None


async def test_a_bug_while_it_stops_still_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = await bench.ready()
    with monkeypatch.context() as patch:
        patch.setattr(EngineProcess, "terminate", lambda _: 1 / 0)
        actor.stop()
        await bench.until(S.STOPPING, S.HELD, S.STOPPED)


async def test_a_bug_of_whoever_listens_leaves_the_state_its_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    actor = bench.run()
    fails, real = [True], bench._on_change

    def on_change(snapshot: object) -> None:
        real(snapshot)  # type: ignore[arg-type]
        if fails and snapshot.state is S.QUEUED:  # type: ignore[attr-defined]
            fails.pop()
            raise RuntimeError("a bug")

    monkeypatch.setattr(actor, "_on_change", on_change)
    actor.start()
    await bench.until(S.QUEUED, S.STARTING, S.READY)
    assert "a bug in memoria" in caplog.text


async def test_a_restart_that_comes_with_the_end_of_a_stop_still_starts(bench: Bench) -> None:
    """The end was decided while nobody wanted it to run."""
    actor = await bench.ready()
    bench.host.released.clear()
    actor.stop()
    await bench.until(S.RELEASING)
    told = actor._send

    def tell(event: object, sender: object = None) -> None:
        told(event, sender)  # type: ignore[arg-type]
        if getattr(event, "name", "") == "REST":
            actor.restart()

    actor._send = tell  # type: ignore[method-assign]
    bench.host.released.set()
    await bench.until(S.STOPPED, S.QUEUED, S.READY)


async def test_a_queued_engine_takes_other_settings_at_once(bench: Bench) -> None:
    bench.host.passenger = False
    bench.host.script = "print('Initializing a V1 LLM engine (v0.33.0)'); " + SERVES
    bench.host.gate_open.clear()
    actor = bench.run()
    actor.start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.QUEUED)
    other = replace(bench.host, gate_open=asyncio.Event())  # at another gate, which is open
    other.gate_open.set()
    actor.adopt(other, bench.timeouts, bench.policy)
    await bench.until(S.STARTING, S.READY)
