"""A standby and its engine's actor: when it is kept, taken, thrown away."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from memoria.engine.lifecycle import State
from memoria.engine.process.marker import marked
from tests.fakes import until
from tests.unit.actor_bench import Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.host.standby = True
    yield made
    await made.close()


def spares(bench: Bench) -> list[int]:
    start = bench.actor.standby_start_id
    return [] if start is None else marked("MEMORIA_START", start)


async def waiting(bench: Bench) -> int:
    """The id of the standby's process, once it waits at the gate."""
    await bench.until_true(lambda snapshot: snapshot.standby == "waiting")
    (pid,) = spares(bench)
    return pid


async def test_a_ready_engine_gets_a_standby_and_a_dead_one_uses_it(bench: Bench) -> None:
    actor = await bench.ready()
    spare = await waiting(bench)
    assert actor.snapshot.pid != spare
    kill(actor)
    await bench.until(S.RELEASING, S.QUEUED, S.STARTING, S.READY)
    assert S.BACKOFF not in bench.states
    assert actor.snapshot.pid == spare
    assert actor.snapshot.restarts == 1
    assert await waiting(bench) != spare


async def test_a_second_crash_soon_after_waits_as_without_a_standby(bench: Bench) -> None:
    actor = await bench.ready()
    await waiting(bench)
    kill(actor)
    await bench.until(S.RELEASING, S.QUEUED, S.STARTING, S.READY)
    await waiting(bench)
    kill(actor)
    await bench.until(S.RELEASING, S.BACKOFF, S.QUEUED, S.STARTING, S.READY)


async def test_a_stopped_engine_has_none_and_leaves_nothing(bench: Bench) -> None:
    actor = await bench.ready()
    spare = await waiting(bench)
    actor.stop()
    await bench.stopped()
    assert actor.snapshot.standby is None
    assert [pid for start in bench.host.starts for pid in marked("MEMORIA_START", start)] == []
    assert sorted(bench.host.forgotten) == sorted(bench.host.starts)
    with pytest.raises(ProcessLookupError):
        os.kill(spare, 0)


async def test_a_standby_that_dies_is_replaced(bench: Bench) -> None:
    await bench.ready()
    spare = await waiting(bench)
    os.kill(spare, signal.SIGKILL)
    await until(lambda: spares(bench) not in ([], [spare]))
    assert await waiting(bench) != spare
    assert "standby_ended" in bench.told()
    assert bench.states[-1] is S.READY


async def test_what_a_standby_says_is_not_the_engines(bench: Bench) -> None:
    """Only once it has taken over: then its log goes on in the engine's place."""
    bench.host.script = "print('Available KV cache memory: 1.00 GiB'); ready(); time.sleep(600)"
    actor = await bench.ready()
    await bench.until_true(lambda snapshot: snapshot.figures.kv_gib == 1.0)
    actor.stop()
    await bench.stopped()
    bench.host.script = "print('Available KV cache memory: %s GiB' % os.getpid()); ready(); time.sleep(600)"
    actor.start()
    await bench.until(S.READY)
    spare = await waiting(bench)
    beside = bench.log.beside("standby").path
    await until(lambda: f"{spare} GiB" in beside.read_text())
    await bench.until_true(lambda snapshot: snapshot.figures.kv_gib == snapshot.pid)
    assert f"{spare} GiB" not in "".join(actor.last_log())
    kill(actor)
    await bench.until(S.RELEASING, S.QUEUED, S.STARTING, S.READY)
    await bench.until_true(lambda snapshot: snapshot.figures.kv_gib == spare)
    assert f"{spare} GiB" in "".join(actor.last_log())
    assert f"{spare} GiB" in bench.log.path.read_text()


async def test_one_that_is_not_at_the_gate_is_not_taken(bench: Bench) -> None:
    """Nobody knows whether it ever gets there."""
    actor = await bench.ready()
    spare = await waiting(bench)
    bench.host.passenger = False
    os.kill(spare, signal.SIGKILL)
    await bench.until_true(lambda snapshot: snapshot.standby == "importing")
    await until(lambda: spares(bench) not in ([], [spare]))
    (importing,) = spares(bench)
    bench.host.passenger = True
    kill(actor)
    await bench.until(S.RELEASING, S.BACKOFF, S.QUEUED, S.STARTING, S.READY)
    assert actor.snapshot.pid != importing
    await until(lambda: not psutil.pid_exists(importing))


async def test_one_that_does_not_get_to_the_gate_in_time_is_replaced(bench: Bench) -> None:
    await bench.ready()
    spare = await waiting(bench)
    bench.host.passenger = False
    bench.actor.adopt(bench.host, replace(bench.timeouts, start=0.05), bench.policy)
    bench.actor._standby.drop()
    bench.actor._keep_standby()
    assert "not at the gate in 0.05 s" in (await bench.until_told("standby_ended")).detail
    bench.host.passenger = True
    assert await waiting(bench) != spare


async def test_one_that_passes_the_gate_unasked_is_ended(bench: Bench) -> None:
    await bench.ready()
    await waiting(bench)
    bench.host.passenger = False
    bench.host.script = "print('Initializing a V1 LLM engine (v0.33.0)'); time.sleep(600)"
    bench.actor._standby.drop()
    bench.actor._keep_standby()
    assert "passed the gate by itself" in (await bench.until_told("standby_ended")).detail


async def test_a_bug_does_not_end_the_keeping(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.ready()
    spare = await waiting(bench)
    with monkeypatch.context() as patch:
        patch.setattr(bench.host, "spawned", lambda *_: 1 / 0)
        os.kill(spare, signal.SIGKILL)
        await bench.until_told("standby_ended")
        await bench.until_true(lambda snapshot: snapshot.standby is None)
        await until(lambda: len(bench.host.starts) > 3)
    assert await waiting(bench) != spare


async def test_an_engine_without_a_passenger_gets_none(bench: Bench) -> None:
    """Nothing would hold the standby's core back from the device."""
    bench.host.passenger = False
    bench.host.script = "print('Initializing a V1 LLM engine (v0.33.0)'); ready(); time.sleep(600)"
    bench.run().start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.QUEUED, S.STARTING, S.READY)
    assert bench.actor.snapshot.standby is None
    assert len(bench.host.starts) == 2


async def test_by_default_there_is_none(bench: Bench) -> None:
    bench.host.standby = False
    await bench.ready()
    assert spares(bench) == []
