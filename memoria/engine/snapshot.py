"""One engine at one moment, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

from memoria.engine.lifecycle import FACTS, State
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.facts import EngineAddress, FetchProgress
from memoria.vllm.log_lines import Phase, StartFigures


@dataclass(frozen=True, slots=True)
class SleepFigures:
    """As measured the last time; None until then. `asleep_bytes`: of the device, kept while asleep."""

    asleep_bytes: int | None = None
    sleep_seconds: float | None = None
    wake_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """`since` and `retry_at` are wall-clock seconds; `start_seconds` is spawn to ready of this start.

    `detail` says why the engine is in this state, for people. `diagnosis` explains the last crash; it stays
    until the engine is ready again."""

    name: str
    state: State
    since: float
    phase: Phase | None = None
    percent: int | None = None
    fetch: FetchProgress | None = None
    detail: str = ""
    pid: int | None = None
    start_id: str | None = None
    address: EngineAddress | None = None
    restarts: int = 0
    figures: StartFigures = field(default_factory=StartFigures)
    start_seconds: float | None = None
    retry_at: float | None = None
    diagnosis: Diagnosis | None = None
    standby: str | None = None  # `importing` or `waiting`; None without one
    on_demand: bool = False
    sleep: SleepFigures = field(default_factory=SleepFigures)

    @property
    def is_blocked(self) -> bool:
        """Whether it waits at the gate for memory that is not free."""
        at_gate = self.phase is Phase.AT_GATE or self.state is State.WAKING
        return at_gate and self.diagnosis is not None and bool(self.detail)

    @property
    def is_healthy(self) -> bool:
        """Ready; or, on demand, away or on its way without a failure."""
        if self.on_demand and self.diagnosis is None:
            return self.state is State.READY or FACTS[self.state].by_plan
        return self.state is State.READY
