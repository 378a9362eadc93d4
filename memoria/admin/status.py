"""The one value that everything a person sees is made of: commands, HTTP answers, later metrics and page.

None means "not known", never 0. Sizes in bytes, times in seconds; `since` and `retry_at` are wall-clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    ttft_p95: float | None


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    label: str
    name: str
    total_bytes: int
    used_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Status:
    version: str
    pid: int
    url: str
    uptime: float
    at: float
    devices: tuple[DeviceStatus, ...]
    engines: tuple[EngineStatus, ...]

    @property
    def healthy(self) -> bool:
        return all(engine.state == "ready" for engine in self.engines)

    def to_json(self) -> dict[str, Any]:
        return {"status": "healthy" if self.healthy else "degraded", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Status:
        """The inverse of `to_json`. Raises `KeyError` or `TypeError` on what another version wrote."""
        plain = {key: value for key, value in data.items() if key != "status"}
        return cls(
            **plain
            | {
                "devices": tuple(DeviceStatus(**device) for device in data["devices"]),
                "engines": tuple(
                    EngineStatus(**{**engine, "models": tuple(engine["models"])})
                    for engine in data["engines"]
                ),
            }
        )
