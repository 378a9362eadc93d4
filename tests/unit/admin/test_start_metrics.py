"""Restarts by their causes, and the phases of a start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memoria.admin.telemetry.exposition import Exposition
from memoria.admin.telemetry.metrics import StartMetrics
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.log_lines import Phase
from tests.fakes import FakeClock
from tests.promtool import complaints

RESTED = EngineSnapshot("a", State.STOPPED, 0.0)
STARTING = replace(RESTED, state=State.STARTING)
KILLED = Diagnosis("killed by SIGKILL", "look", "yes", "signal")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def starts(clock: FakeClock) -> StartMetrics:
    return StartMetrics(["a", "b"], clock)


def values(starts: StartMetrics) -> dict[str, float]:
    """What is not 0."""
    text = Exposition(starts.families()).render().decode()
    assert complaints(text) == []
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.partition("_engine_")[2]: float(value) for name, _, value in lines if float(value)}


def phase(name: Phase, start: str = "1") -> EngineSnapshot:
    return replace(STARTING, phase=name, start_id=start)


def test_time_is_shown_by_phase_once_the_engine_is_ready(starts: StartMetrics, clock: FakeClock) -> None:
    for name, seconds in [
        (Phase.SPAWNED, 5),
        (Phase.COMPILING, 2),
        (Phase.PROFILING, 1),
        (Phase.COMPILING, 3),
    ]:
        starts.on_change(phase(name))
        starts.on_change(phase(name))  # a line of the log that says nothing new
        clock.now += seconds
    assert values(starts) == {}
    ready = replace(phase(Phase.COMPILING), state=State.READY)
    starts.on_change(ready)
    clock.now += 100
    starts.on_change(replace(ready, phase=None))
    assert values(starts) == {
        'start_phase_seconds{engine="a",phase="spawned"}': 5,
        'start_phase_seconds{engine="a",phase="compiling"}': 5,
        'start_phase_seconds{engine="a",phase="profiling"}': 1,
    }


def test_a_start_that_fails_does_not_replace_the_latest_good_one(
    starts: StartMetrics, clock: FakeClock
) -> None:
    starts.on_change(phase(Phase.SPAWNED))
    clock.now += 4
    starts.on_change(replace(phase(Phase.SPAWNED), state=State.READY))
    starts.on_change(phase(Phase.SPAWNED, "2"))
    clock.now += 9
    starts.on_change(replace(phase(Phase.SPAWNED, "2"), state=State.RELEASING))
    assert values(starts) == {'start_phase_seconds{engine="a",phase="spawned"}': 4}


def test_restarts_are_counted_by_what_ended_the_start_before(starts: StartMetrics) -> None:
    starts.on_change(STARTING)
    for count, diagnosis in enumerate([KILLED, KILLED, None, replace(KILLED, kind="memory")], 1):
        starts.on_change(replace(STARTING, restarts=count, diagnosis=diagnosis))
        starts.on_change(replace(STARTING, restarts=count, diagnosis=diagnosis, percent=50))
    assert values(starts) == {
        'restarts_total{engine="a",cause="signal"}': 2,
        'restarts_total{engine="a",cause="asked"}': 1,
        'restarts_total{engine="a",cause="memory"}': 1,
    }


def test_every_cause_is_there_from_the_beginning(starts: StartMetrics) -> None:
    text = Exposition(starts.families()).render().decode()
    for cause in ("memory", "device", "model", "start", "signal", "error", "silence", "memoria", "asked"):
        for engine in ("a", "b"):
            assert f'memoria_engine_restarts_total{{engine="{engine}",cause="{cause}"}} 0\n' in text


def test_an_engine_that_was_taken_out_and_is_back_is_counted_on(starts: StartMetrics) -> None:
    for count in (0, 1, 2, 3):
        starts.on_change(replace(STARTING, restarts=count))
    for count in (0, 1):  # another one of the same name
        starts.on_change(replace(STARTING, restarts=count))
    assert values(starts) == {'restarts_total{engine="a",cause="asked"}': 4}
