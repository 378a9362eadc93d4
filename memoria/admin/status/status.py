"""`Status`: the one value behind everything a person sees: commands, HTTP, metrics, the page.

None means "not known", never 0. Sizes in bytes, times in seconds, points in time as Unix time. The docstrings
here are the descriptions of the API (`/openapi.json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from memoria.config.model import Runner
from memoria.engine.lifecycle import FACTS, State

Term = Literal["kv_tokens", "weights_bytes", "graph_bytes"]
StartPart = Literal["fetch", "queue", "import", "gate", "load", "compile", "profile", "graphs", "warm-up"]


@dataclass(frozen=True, slots=True)
class StartSpan:
    """A part of an engine's start. Parts may come more than once."""

    part: StartPart
    began: float
    """Seconds after memoria's own start."""
    seconds: float


@dataclass(frozen=True, slots=True)
class PlannedTerm:
    """One term of the plan beside vLLM's own figure after the start."""

    term: Term
    planned: int
    said: int
    error: float | None
    """0.02: vLLM's figure is 2 % higher."""
    notable: bool
    """Outside the error of the planner's estimates."""


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """vLLM's own figures of its latest start."""

    weights_bytes: int | None
    graph_bytes: int | None
    kv_bytes: int | None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an engine's budget is planned to hold, and what vLLM measured."""

    weights_bytes: int
    step_bytes: int
    """The peak of one step, and what stays; on a host, the libraries."""
    graph_bytes: int
    kv_bytes: int
    """Below 0 where the rest leaves it nothing."""
    context_bytes: int
    """Outside the budget."""
    bar_bytes: int
    """Error of the estimates."""
    fits: bool
    doubtful: bool
    """It fits, or does not, by less than the error."""
    measured: MeasuredMemory | None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    name: str
    state: str
    since: float
    """Unix time."""
    phase: str | None
    """Of the start."""
    percent: int | None
    """Of the weights that are loaded, or of the model that is fetched."""
    detail: str
    """Why it is in this state; blank where there is nothing to say."""
    hint: str | None
    retry_at: float | None
    """Unix time."""
    restarts: int
    pid: int | None
    port: int | None
    models: tuple[str, ...]
    runner: Runner
    device: str
    fraction: str
    budget_bytes: int
    used_bytes: int | None
    start_seconds: float | None
    """Duration of the latest start."""
    kv_tokens: int | None
    planned_kv_tokens: int | None
    """The plan's estimate of the KV cache."""
    concurrency: float | None
    max_model_len: int | None
    kv_usage: float | None
    """0 to 1."""
    running: int | None
    waiting: int | None
    """Queued in the engine."""
    in_flight: int
    held: int
    """Queued in memoria."""
    limit: int
    """Most requests at the engine at once."""
    requests: int
    """Since memoria started."""
    requests_per_second: float | None
    """Of the last minute."""
    tokens_per_second: float | None
    """Tokens written by a generating engine, read by a pooling one."""
    ttft_p50: float | None
    """Seconds to the first byte of a streamed answer; errors do not count."""
    ttft_p95: float | None
    """Seconds to the first byte of a streamed answer; errors do not count."""
    total_p50: float | None
    """Seconds to the last byte; errors do not count."""
    total_p95: float | None
    """Seconds to the last byte; errors do not count."""
    last_exit: str | None
    """Why it ended last without a request to stop."""
    standby: str | None
    """State of the standby process; null where there is none."""
    standby_bytes: int | None
    """The standby's resident memory."""
    fetched_bytes: int | None = None
    """Of its model, while it comes from the hub."""
    fetch_total_bytes: int | None = None
    fetch_bytes_per_second: float | None = None
    plan: tuple[PlannedTerm, ...] = ()
    """Empty until vLLM has reported its figures."""
    memory_plan: MemoryPlan | None = None
    """Null where the model is not known."""
    on_demand: bool = False
    """It runs only while it is needed."""
    start_spans: tuple[StartSpan, ...] = ()
    """The latest start, in its order."""
    asleep_bytes: int | None = None
    """Of the device, kept by its process while it is asleep; null until it has slept."""
    sleeping_weights_bytes: int | None = None
    """Of host memory, for its weights."""
    sleep_seconds: float | None = None
    """Duration of the latest fall asleep."""
    wake_seconds: float | None = None
    """Duration of the latest wake from sleep."""

    @property
    def is_healthy(self) -> bool:
        """Ready; or, on demand, away or on its way without a failure."""
        if self.on_demand and self.hint is None and self.state in set(State):
            return self.state == State.READY or FACTS[State(self.state)].by_plan
        return self.state == State.READY


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """A process outside memoria that uses memory of a device."""

    pid: int
    user: str | None
    command: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    label: str
    name: str
    total_bytes: int
    limit_bytes: int
    """Upper limit of the sum of all budgets."""
    used_bytes: int | None
    free_bytes: int | None
    others: tuple[OtherProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """Protection of one engine from its neighbours: the 95th percentile of the gap between its tokens should
    not exceed `target`."""

    engine: str
    """The protected engine."""
    neighbours: tuple[str, ...]
    target: float
    """Seconds."""
    gap_p95: float | None
    """Seconds; null while the engine is idle."""
    limit: int | None
    """Most requests at each neighbour at once; null: not throttled."""
    lowered: int
    """How many times the limit fell."""


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What the listening addresses show to clients (`tls`)."""

    sha256: str
    """Of the server's own certificate, in hexadecimal."""
    expires: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Status:
    version: str
    pid: int
    url: str
    uptime: float
    at: float
    """Unix time."""
    devices: tuple[DeviceStatus, ...]
    engines: tuple[EngineStatus, ...]
    guard: GuardStatus | None = None
    certificate: CertificateStatus | None = None
    """Null without TLS."""
    ready_after: float | None = None
    """Seconds from memoria's start until all engines were ready, or away on demand; null until then."""

    @property
    def healthy(self) -> bool:
        return all(engine.is_healthy for engine in self.engines)

    def to_json(self) -> dict[str, Any]:
        return {"status": "healthy" if self.healthy else "degraded", **msgspec.to_builtins(self)}

    @classmethod
    def from_json(cls, data: object) -> Status:
        """The inverse of `to_json`. Raises `ValueError` on the output of another version."""
        return msgspec.convert(data, cls)
