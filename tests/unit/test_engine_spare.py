"""A standby and its engine's actor: when it is kept, taken, thrown away."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memoria.engine.lifecycle import State
from memoria.engine.marker import marked
from tests.fakes import until
from tests.unit.actor_bench import Bench, kill

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.around.standby = True
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
    assert [pid for start in bench.around.starts for pid in marked("MEMORIA_START", start)] == []
    assert sorted(bench.around.forgotten) == sorted(bench.around.starts)
    with pytest.raises(ProcessLookupError):
        os.kill(spare, 0)


async def test_a_standby_that_dies_is_replaced(bench: Bench) -> None:
    await bench.ready()
    spare = await waiting(bench)
    os.kill(spare, signal.SIGKILL)
    await until(lambda: spares(bench) not in ([], [spare]))
    assert await waiting(bench) != spare
    assert "standby ended" in bench.told()
    assert bench.states[-1] is S.READY


async def test_an_engine_without_a_passenger_gets_none(bench: Bench) -> None:
    """Nothing would hold the standby's core back from the device."""
    bench.around.passenger = False
    bench.around.script = "print('Initializing a V1 LLM engine (v0.33.0)'); ready(); time.sleep(600)"
    bench.run().start()
    await bench.until(S.STARTING, S.STOPPING, S.RELEASING, S.QUEUED, S.STARTING, S.READY)
    assert bench.actor.snapshot.standby is None
    assert len(bench.around.starts) == 2


async def test_by_default_there_is_none(bench: Bench) -> None:
    bench.around.standby = False
    await bench.ready()
    assert spares(bench) == []
