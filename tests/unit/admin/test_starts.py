"""Spans of starts, from the snapshots of two engines whose starts overlap."""

from __future__ import annotations

from memoria.admin.status.starts import StartTimes
from memoria.admin.status.status import StartSpan
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.vllm.log_lines import Phase


class Box:
    def __init__(self) -> None:
        self.now, self.ready = 100.0, False
        self.times = StartTimes(lambda: self.ready, 100.0, lambda: self.now)

    def at(self, seconds: float, name: str, state: State, phase: Phase | None = None) -> None:
        self.now = 100.0 + seconds
        self.times.saw(EngineSnapshot(name, state, self.now, phase))


def test_two_starts_overlap_and_all_ready_is_noted_once() -> None:
    box = Box()
    box.at(1, "a", State.QUEUED)
    box.at(1, "b", State.FETCHING)
    box.at(1, "a", State.STARTING, Phase.SPAWNED)
    box.at(4, "a", State.STARTING, Phase.CONFIGURED)
    box.at(9, "a", State.STARTING, Phase.AT_GATE)
    box.at(9.5, "b", State.QUEUED)
    box.at(10, "a", State.STARTING, Phase.ENGINE)
    box.at(14, "a", State.READY)
    assert box.times.of("b") == (StartSpan("fetch", 1, 8.5), StartSpan("queue", 9.5, 4.5))
    box.ready = True
    box.at(15, "b", State.READY)
    box.at(20, "b", State.DRAINING)
    assert box.times.ready_after == 15
    assert box.times.of("a") == (
        StartSpan("queue", 1, 0),
        StartSpan("import", 1, 8),
        StartSpan("gate", 9, 1),
        StartSpan("load", 10, 4),
    )
    assert box.times.of("c") == ()


def test_another_start_begins_anew_and_parts_may_come_twice() -> None:
    box = Box()
    box.at(1, "a", State.STARTING, Phase.LOADING)
    box.at(2, "a", State.BACKOFF)
    box.at(5, "a", State.QUEUED)
    box.at(5, "a", State.STARTING, None)
    box.at(6, "a", State.STARTING, Phase.COMPILING)
    box.at(7, "a", State.STARTING, Phase.PROFILING)
    box.at(8, "a", State.STARTING, Phase.COMPILING)
    box.at(9, "a", State.READY)
    assert [(span.part, span.began) for span in box.times.of("a")] == [
        ("queue", 5),
        ("compile", 6),
        ("profile", 7),
        ("compile", 8),
    ]
