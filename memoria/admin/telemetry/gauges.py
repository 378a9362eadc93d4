"""A `Status` in Prometheus's terms."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection

from memoria.admin.status.status import DeviceStatus, EngineStatus, GuardStatus, Status
from memoria.admin.telemetry.exposition import Family, Point, counter, gauge
from memoria.engine.lifecycle import State


def families(status: Status, answering: Collection[str]) -> tuple[Family, ...]:
    """`answering`: the engines whose own metrics are there. What is not known is left out."""
    info = {"version": status.version, "python": platform.python_version()}
    return (
        gauge("memoria_build_info", "Always 1; the versions are in the labels.", [(info, 1)]),
        gauge("memoria_start_time_seconds", "When the daemon started.", [({}, status.at - status.uptime)]),
        *_engines(status.engines, answering),
        *_devices(status),
        *(() if status.guard is None else _guard(status.guard)),
    )


def _engines(engines: Collection[EngineStatus], answering: Collection[str]) -> tuple[Family, ...]:
    def each(name: str, text: str, value: Callable[[EngineStatus], float | None]) -> Family:
        values = ((engine.name, value(engine)) for engine in engines)
        return gauge(name, text, [({"engine": name}, known) for name, known in values if known is not None])

    states: list[Point] = [
        ({"engine": engine.name, "state": state.value}, int(engine.state == state))
        for engine in engines
        for state in State
    ]
    return (
        gauge("memoria_engine_state", "1 for the state that the engine is in, 0 for the others.", states),
        each("memoria_engine_ready", "1 while the engine is ready.", lambda e: int(e.state == State.READY)),
        each(
            "memoria_engine_metrics_up",
            "1 where the engine's own series are among these, 0 where it does not serve or did not answer.",
            lambda e: int(e.name in answering),
        ),
        each("memoria_engine_start_seconds", "Length of the latest start.", lambda e: e.start_seconds),
        each("memoria_requests_in_flight", "Requests that the engine has now.", lambda e: e.in_flight),
        each("memoria_requests_held", "Requests that wait for a place at the engine.", lambda e: e.held),
        each(
            "memoria_requests_limit", "Requests that the engine may be given at once now.", lambda e: e.limit
        ),
    )


def _devices(status: Status) -> tuple[Family, ...]:
    def each(name: str, text: str, value: Callable[[DeviceStatus], float | None]) -> Family:
        values = ((device.label, value(device)) for device in status.devices)
        return gauge(name, text, [({"device": label}, known) for label, known in values if known is not None])

    on = [({"device": engine.device, "engine": engine.name}, engine) for engine in status.engines]
    return (
        each("memoria_device_memory_bytes", "Memory of the GPU, or of the host.", lambda d: d.total_bytes),
        each("memoria_device_memory_free_bytes", "Memory that nobody holds.", lambda d: d.free_bytes),
        each(
            "memoria_device_memory_others_bytes",
            "Memory held by others than memoria's engines.",
            lambda d: _others(d, status.engines),
        ),
        gauge(
            "memoria_engine_memory_bytes",
            "Memory that the engine's processes hold.",
            [(labels, e.used_bytes) for labels, e in on if e.used_bytes is not None],
        ),
        gauge(
            "memoria_engine_memory_budget_bytes",
            "Memory that the engine may claim, by its fraction.",
            [(labels, e.budget_bytes) for labels, e in on],
        ),
    )


def _others(device: DeviceStatus, engines: Collection[EngineStatus]) -> int | None:
    """None where it is not known what some engine holds."""
    if device.used_bytes is None:
        return None
    here = [engine for engine in engines if engine.device == device.label and engine.pid is not None]
    if any(engine.used_bytes is None for engine in here):
        return None
    return max(0, device.used_bytes - sum(engine.used_bytes or 0 for engine in here))


def _guard(guard: GuardStatus) -> tuple[Family, ...]:
    protected = {"engine": guard.engine}
    gap = [] if guard.gap_p95 is None else [(protected, guard.gap_p95)]
    limit = [] if guard.limit is None else [(protected, guard.limit)]
    return (
        gauge(
            "memoria_guard_active",
            "1 while other engines are given fewer requests for this one's sake.",
            [(protected, int(guard.limit is not None))],
        ),
        gauge(
            "memoria_guard_limit",
            "Requests that each of the others is given at once; only while active.",
            limit,
        ),
        gauge(
            "memoria_guard_target_seconds",
            "The gap between tokens that is kept to.",
            [(protected, guard.target)],
        ),
        gauge("memoria_guard_gap_p95_seconds", "95 % of the gaps between tokens are shorter.", gap),
        counter(
            "memoria_guard_lowered_total", "How many times the limit fell.", [(protected, guard.lowered)]
        ),
    )
