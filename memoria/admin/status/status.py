"""The one value that everything a person sees is made of: commands, HTTP answers, metrics, later a page.

None means "not known", never 0. Sizes in bytes, times in seconds; `since` and `retry_at` are wall-clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PlannedTerm:
    """`kv_tokens`, `weights_bytes` or `graph_bytes`, as planned and as vLLM said it after the start. `error`:
    0.02 where vLLM's is two in a hundred more; `notable`: more than the planner's estimates are wrong by."""

    term: str
    planned: int
    said: int
    error: float | None
    notable: bool


@dataclass(frozen=True, slots=True)
class EngineStatus:
    name: str
    state: str
    since: float
    phase: str | None
    percent: int | None
    detail: str
    hint: str | None
    retry_at: float | None
    restarts: int
    pid: int | None
    port: int | None
    models: tuple[str, ...]
    runner: str
    device: str
    fraction: str
    budget_bytes: int
    used_bytes: int | None
    start_seconds: float | None
    kv_tokens: int | None
    planned_kv_tokens: int | None
    concurrency: float | None
    max_model_len: int | None
    kv_usage: float | None
    running: int | None
    waiting: int | None
    in_flight: int
    held: int
    limit: int
    requests: int
    requests_per_second: float | None
    tokens_per_second: float | None
    ttft_p50: float | None
    ttft_p95: float | None
    total_p50: float | None
    total_p95: float | None
    last_exit: str | None
    standby: str | None
    standby_bytes: int | None
    plan: tuple[PlannedTerm, ...] = ()


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """One that is not memoria's, and holds memory of a device."""

    pid: int
    user: str | None
    command: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """`limit_bytes`: the most that the engines' budgets may add up to."""

    label: str
    name: str
    total_bytes: int
    limit_bytes: int
    used_bytes: int | None
    free_bytes: int | None
    others: tuple[OtherProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """`engine` is protected from its `neighbours`: 95 % of the gaps between its tokens should not exceed
    `target`. `gap_p95`: what they were, None while it is idle. `limit`: requests that each neighbour is given
    at once; None: none is held back. `lowered`: how many times the limit fell."""

    engine: str
    neighbours: tuple[str, ...]
    target: float
    gap_p95: float | None
    limit: int | None
    lowered: int


@dataclass(frozen=True, slots=True)
class Status:
    version: str
    pid: int
    url: str
    uptime: float
    at: float
    devices: tuple[DeviceStatus, ...]
    engines: tuple[EngineStatus, ...]
    guard: GuardStatus | None = None

    @property
    def healthy(self) -> bool:
        return all(engine.state == "ready" for engine in self.engines)

    def to_json(self) -> dict[str, Any]:
        return {"status": "healthy" if self.healthy else "degraded", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Status:
        """The inverse of `to_json`. Raises `KeyError` or `TypeError` on what another version wrote."""
        plain = {key: value for key, value in data.items() if key != "status"}
        guard = data.get("guard")
        return cls(
            **plain
            | {
                "devices": tuple(
                    DeviceStatus(
                        **{**device, "others": tuple(OtherProcess(**other) for other in device["others"])}
                    )
                    for device in data["devices"]
                ),
                "engines": tuple(
                    EngineStatus(
                        **{
                            **engine,
                            "models": tuple(engine["models"]),
                            "plan": tuple(PlannedTerm(**term) for term in engine["plan"]),
                        }
                    )
                    for engine in data["engines"]
                ),
                "guard": guard and GuardStatus(**{**guard, "neighbours": tuple(guard["neighbours"])}),
            }
        )
