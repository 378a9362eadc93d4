"""Every engine's restarts by their causes, and where the time of its latest start went."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import get_args

from memoria.admin.telemetry.exposition import Family, counter, gauge
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.vllm.failures import Kind
from memoria.vllm.log_lines import Phase

CAUSES = (*get_args(Kind), "asked")


@dataclass(slots=True)
class _Engine:
    restarts: int = 0
    causes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    start_id: str | None = None
    phase: Phase | None = None
    since: float = 0.0
    current: dict[Phase, float] = field(default_factory=dict)
    latest: dict[Phase, float] = field(default_factory=dict)  # of the latest start that got ready


class Starts:
    """Told every snapshot of every engine (`Supervisor.listen`). `engines` are those that there are, at any
    time: counters stay when an engine is gone, what it did last does not."""

    def __init__(self, engines: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._present = clock, engines
        self._engines = {name: _Engine() for name in engines}

    def on_change(self, snapshot: EngineSnapshot) -> None:
        engine = self._engines.setdefault(snapshot.name, _Engine())
        if snapshot.restarts < engine.restarts:  # it was taken out of the configuration, and is back
            engine.restarts = 0
        if snapshot.restarts > engine.restarts:
            engine.restarts = snapshot.restarts
            cause = snapshot.diagnosis.kind if snapshot.diagnosis else "asked"
            engine.causes[cause] += 1
        if snapshot.start_id != engine.start_id:
            engine.start_id, engine.phase, engine.current = snapshot.start_id, None, {}
        phase = snapshot.phase if snapshot.state is State.STARTING else None
        if phase is not engine.phase:
            now = self._clock()
            if engine.phase is not None:  # phases may come more than once
                spent = now - engine.since
                engine.current[engine.phase] = engine.current.get(engine.phase, 0.0) + spent
            engine.phase, engine.since = phase, now
            if snapshot.state is State.READY:
                engine.latest = engine.current

    def families(self) -> tuple[Family, ...]:
        return (
            counter(
                "memoria_engine_restarts_total",
                "Starts after the first, by what ended the start before.",
                (
                    ({"engine": name, "cause": cause}, count)
                    for name, engine in self._engines.items()
                    for cause, count in engine.causes.items()
                ),
            ),
            gauge(
                "memoria_engine_start_phase_seconds",
                "Time that the engine's latest start spent in each phase.",
                (
                    ({"engine": name, "phase": phase.name.lower()}, round(seconds, 6))
                    for name, engine in self._engines.items()
                    if name in self._present
                    for phase, seconds in engine.latest.items()
                ),
            ),
        )
