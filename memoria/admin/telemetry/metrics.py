"""`GET /metrics` for Prometheus: every series of memoria's own, and those of all engines that answer."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import get_args

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from memoria.admin.status.collect import Collector
from memoria.admin.status.status import CertificateStatus, DeviceStatus, EngineStatus, GuardStatus, Status
from memoria.admin.telemetry.exposition import (
    CONTENT_TYPE,
    Exposition,
    Family,
    Histogram,
    Point,
    counter,
    gauge,
    histogram,
)
from memoria.admin.telemetry.loop_lag import LoopLag
from memoria.admin.telemetry.requests import Requests
from memoria.aio import Turns
from memoria.engine.events import Entry, EventKind
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.logs import dropped_writes
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm.failures import Kind
from memoria.vllm.log_lines import Phase

CAUSES = (*get_args(Kind), "asked")  # of a restart
# Seconds: from a small embedding to a long completion.
BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)


class Metrics:
    def __init__(self, supervisor: Supervisor, collector: Collector, requests: Requests) -> None:
        self.requests, self.loop_lag = RequestMetrics(supervisor.names), LoopLag()
        self._supervisor, self._collector, self._log = supervisor, collector, requests
        self._starts = StartMetrics(supervisor.names)
        self._swaps = SwapMetrics()
        supervisor.listen(self._starts.on_change)
        supervisor.journal.listen(self._swaps.on_event)

    async def render(self) -> bytes:
        """All series; those of engines get an `engine` label."""
        found = await self._collector.collect()
        exposition = Exposition(
            (
                *status_families(found.status, found.expositions),
                *self._starts.families(),
                *self._swaps.families(),
                *self.requests.families(),
                *log_families(self._log),
                *self.loop_lag.families(),
            )
        )
        turns = Turns()
        for engine, text in found.expositions.items():
            for _ in exposition.merge(text, engine):
                await turns.give_way()
        return exposition.render()

    def routes(self) -> list[Route]:
        """On an engine's own port: only that engine's series, unchanged."""

        async def metrics(request: Request) -> Response:
            port = request.scope["server"][1]
            engine = next((e.name for e in self._supervisor.config.engines if port and e.port == port), None)
            text = await (self.render() if engine is None else self._collector.exposition(engine))
            if text is None:
                return PlainTextResponse(f"{engine} does not answer\n", 503)
            return Response(text, media_type=CONTENT_TYPE)

        return [Route("/metrics", metrics, methods=["GET"])]


def status_families(status: Status, answering: Collection[str]) -> tuple[Family, ...]:
    """Gauges of a `Status`; what is not known is left out. `answering`: engines whose own series are
    there."""
    info = {"version": status.version, "python": platform.python_version()}
    return (
        gauge("memoria_build_info", "Always 1; the versions are in the labels.", [(info, 1)]),
        gauge("memoria_start_time_seconds", "When the daemon started.", [({}, status.at - status.uptime)]),
        *(() if status.certificate is None else (_certificate(status.certificate),)),
        *_engines(status.engines, answering),
        *_devices(status),
        *(() if status.guard is None else _guard(status.guard)),
    )


def _certificate(certificate: CertificateStatus) -> Family:
    text = "When the certificate of `tls` expires."
    return gauge("memoria_certificate_expiry_timestamp_seconds", text, [({}, certificate.expires)])


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
        gauge("memoria_engine_state", "1 for the engine's state, 0 for all others.", states),
        each("memoria_engine_ready", "1 while the engine is ready.", lambda e: int(e.state == State.READY)),
        each(
            "memoria_engine_metrics_up",
            "1 where the engine's own series are included, 0 where it does not serve or did not answer.",
            lambda e: int(e.name in answering),
        ),
        each("memoria_engine_start_seconds", "Duration of the latest start.", lambda e: e.start_seconds),
        each(
            "memoria_engine_fetched_bytes",
            "Of its model, while that comes from the hub.",
            lambda e: e.fetched_bytes,
        ),
        each(
            "memoria_engine_fetch_total_bytes", "Of its model that is to come.", lambda e: e.fetch_total_bytes
        ),
        gauge(
            "memoria_engine_awake",
            "1 while an engine on demand is awake, 0 while it is away or on its way.",
            [({"engine": e.name}, int(e.state == State.READY)) for e in engines if e.on_demand],
        ),
        each(
            "memoria_engine_asleep_memory_bytes",
            "Of the device, kept by the engine's process while it sleeps.",
            lambda e: e.asleep_bytes,
        ),
        each(
            "memoria_engine_host_memory_bytes",
            "Of the host, for the weights of an engine that has slept.",
            lambda e: e.sleeping_weights_bytes,
        ),
        each("memoria_requests_in_flight", "Requests at the engine.", lambda e: e.in_flight),
        each("memoria_requests_held", "Requests queued in memoria for the engine.", lambda e: e.held),
        each("memoria_requests_limit", "Most requests that may be at the engine at once.", lambda e: e.limit),
    )


def _devices(status: Status) -> tuple[Family, ...]:
    def each(name: str, text: str, value: Callable[[DeviceStatus], float | None]) -> Family:
        values = ((device.label, value(device)) for device in status.devices)
        return gauge(name, text, [({"device": label}, known) for label, known in values if known is not None])

    on = [({"device": engine.device, "engine": engine.name}, engine) for engine in status.engines]
    return (
        each("memoria_device_memory_bytes", "Memory of the GPU, or of the host.", lambda d: d.total_bytes),
        each("memoria_device_memory_free_bytes", "Free memory.", lambda d: d.free_bytes),
        each(
            "memoria_device_memory_others_bytes",
            "Memory used by anything but memoria's engines.",
            lambda d: _others(d, status.engines),
        ),
        gauge(
            "memoria_engine_memory_bytes",
            "Memory used by the engine's processes.",
            [(labels, e.used_bytes) for labels, e in on if e.used_bytes is not None],
        ),
        gauge(
            "memoria_engine_memory_budget_bytes",
            "Memory that the engine may use, from its fraction.",
            [(labels, e.budget_bytes) for labels, e in on],
        ),
    )


def _others(device: DeviceStatus, engines: Collection[EngineStatus]) -> int | None:
    """None where the use of some engine is not known."""
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
            "1 while other engines are throttled to protect this one.",
            [(protected, int(guard.limit is not None))],
        ),
        gauge("memoria_guard_limit", "Most requests at each throttled engine; only while active.", limit),
        gauge(
            "memoria_guard_target_seconds",
            "Target for the gap between two tokens.",
            [(protected, guard.target)],
        ),
        gauge("memoria_guard_gap_p95_seconds", "95th percentile of the gap between two tokens.", gap),
        counter(
            "memoria_guard_lowered_total", "How many times the limit fell.", [(protected, guard.lowered)]
        ),
    )


def log_families(requests: Requests) -> tuple[Family, ...]:
    text = "Requests missing from the request log because its disk was too slow or full."
    lines = "Lines missing from standard output and error because nothing read them."
    return (
        counter("memoria_requests_not_logged_total", text, [({}, requests.not_logged)]),
        counter("memoria_output_dropped_total", lines, [({}, dropped_writes())]),
    )


@dataclass(slots=True)
class _Starts:
    restarts: int = 0
    causes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    start_id: str | None = None
    phase: Phase | None = None
    since: float = 0.0
    current: dict[Phase, float] = field(default_factory=dict)
    latest: dict[Phase, float] = field(default_factory=dict)  # of the latest start that became ready


class SwapMetrics:
    """Wakes and ends of engines on demand, from the journal. Counters of a removed engine stay."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wakes: Counter[tuple[str, str, str]] = Counter()
        self._sleeps: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._dozes: dict[str, float] = {}  # since when, while it falls asleep
        self._sleep_seconds: dict[str, Histogram] = {}
        self._ends: Counter[tuple[str, str]] = Counter()
        self._woken: dict[str, float] = {}  # when, while it is on its way
        self._seconds: dict[str, Histogram] = {}

    def on_event(self, entry: Entry) -> None:
        where = entry.subject, str(entry.data.get("cause"))
        if entry.kind is EventKind.WAKES:
            self._wakes[entry.subject, str(entry.data.get("away")), where[1]] += 1
            self._wrong[entry.subject] += 0
            self._woken[entry.subject] = self._clock()
        elif entry.kind is EventKind.MAKES_ROOM:
            self._ends[where] += 1
        elif entry.kind is EventKind.WRONG_AFTER_WAKE:
            self._wrong[entry.subject] += 1
        elif entry.state is State.DOZING:
            self._dozes[entry.subject] = self._clock()
        elif entry.state is State.ASLEEP and (since := self._dozes.pop(entry.subject, None)) is not None:
            self._sleeps[entry.subject] += 1
            self._sleep_seconds.setdefault(entry.subject, Histogram(BOUNDS)).observe(self._clock() - since)
        elif entry.state is State.READY and (woken := self._woken.pop(entry.subject, None)) is not None:
            self._seconds.setdefault(entry.subject, Histogram(BOUNDS)).observe(self._clock() - woken)
        elif entry.state in (State.DORMANT, State.STOPPED, State.FAILED):
            self._woken.pop(entry.subject, None)

    def families(self) -> tuple[Family, ...]:
        def points(counts: Counter[tuple[str, str]]) -> list[Point]:
            return [({"engine": engine, "cause": cause}, count) for (engine, cause), count in counts.items()]

        return (
            counter(
                "memoria_engine_wakes_total",
                "Wakes of an engine on demand.",
                [
                    ({"engine": engine, "from": away, "cause": cause}, count)
                    for (engine, away, cause), count in self._wakes.items()
                ],
            ),
            counter(
                "memoria_engine_sleeps_total",
                "Times that it fell asleep.",
                [({"engine": engine}, count) for engine, count in self._sleeps.items()],
            ),
            counter(
                "memoria_engine_wrong_after_wake_total",
                "Wakes after which it answered differently than before.",
                [({"engine": engine}, count) for engine, count in self._wrong.items()],
            ),
            histogram(
                "memoria_engine_sleep_seconds",
                "From its last request until it is asleep.",
                [({"engine": engine}, seconds) for engine, seconds in self._sleep_seconds.items()],
            ),
            counter("memoria_engine_yields_total", "Times that it made room.", points(self._ends)),
            histogram(
                "memoria_engine_wake_seconds",
                "From the decision to wake an engine until it is ready.",
                [({"engine": engine}, seconds) for engine, seconds in self._seconds.items()],
            ),
        )


class StartMetrics:
    """Restarts of each engine by cause, and the phases of its latest start. Listens to every snapshot of
    every engine (`Supervisor.listen`).

    `engines` is a live view of the configured engines: counters of a removed engine stay, its phases go."""

    def __init__(self, engines: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._present = clock, engines
        self._engines = {name: _Starts() for name in engines}

    def on_change(self, snapshot: EngineSnapshot) -> None:
        engine = self._engines.setdefault(snapshot.name, _Starts())
        if snapshot.restarts < engine.restarts:  # removed from the configuration, and added again
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
            if engine.phase is not None:  # a phase may occur more than once
                spent = now - engine.since
                engine.current[engine.phase] = engine.current.get(engine.phase, 0.0) + spent
            engine.phase, engine.since = phase, now
            if snapshot.state is State.READY:
                engine.latest = engine.current

    def families(self) -> tuple[Family, ...]:
        return (
            counter(
                "memoria_engine_restarts_total",
                "Starts after the first, by what ended the previous start.",
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


class _Line:
    """Requests of one route to one engine that ended with one status code."""

    __slots__ = ("aborted", "duration", "first_byte", "refused", "replays", "requests")

    def __init__(self, duration: Histogram, first_byte: Histogram) -> None:
        self.requests = self.refused = self.aborted = self.replays = 0
        self.duration, self.first_byte = duration, first_byte


class RequestMetrics:
    """Completed requests since the daemon's start, counted by outcome.

    `engines` is a live view of the configured engines; each is listed from the start, with zeros. A request
    rejected before its engine or route was known has empty labels, which to Prometheus means no label."""

    def __init__(self, engines: Collection[str]) -> None:
        self._engines = engines
        self._lines: dict[tuple[str | None, str | None, int], _Line] = {}
        self._histograms: dict[tuple[str | None, str | None], tuple[Histogram, Histogram]] = {}

    def count_request(self, record: RequestRecord) -> None:
        """Runs for every request, so it does the minimum."""
        key = (record.engine, record.route, record.status)
        line = self._lines.get(key) or self._new_line(key)
        line.requests += 1
        first_byte_s = record.first_byte_s
        if first_byte_s is not None:
            line.first_byte.observe(first_byte_s)
            line.duration.observe(record.duration_s)
        elif record.status != CLIENT_GONE:
            line.refused += 1
        if not record.complete:
            line.aborted += 1
        line.replays += record.replays

    def answered(self, engine: str) -> int:
        """Number of complete answers of an engine."""
        return sum(
            line.requests - line.aborted - line.refused
            for (name, _, _), line in self._lines.items()
            if name == engine
        )

    def families(self) -> tuple[Family, ...]:
        requests = [
            ({"engine": engine or "", "route": route or "", "code": str(code)}, line.requests)
            for (engine, route, code), line in self._lines.items()
        ]
        refused: dict[tuple[str, str], int] = {}
        aborted, replayed = dict.fromkeys(self._engines, 0), dict.fromkeys(self._engines, 0)
        for (name, _, code), line in self._lines.items():
            engine = name or ""
            if line.refused:
                refused[engine, str(code)] = refused.get((engine, str(code)), 0) + line.refused
            aborted[engine] = aborted.get(engine, 0) + line.aborted
            replayed[engine] = replayed.get(engine, 0) + line.replays
        observed = [
            ({"engine": engine or "", "route": route or ""}, both)
            for (engine, route), both in self._histograms.items()
            if any(both[0].counts)
        ]
        return (
            counter(
                "memoria_requests_total",
                "Completed requests; code 499: the client disconnected before the answer began.",
                requests,
            ),
            counter(
                "memoria_requests_refused_total",
                "Requests that memoria itself answered, with an error.",
                (({"engine": engine, "code": code}, count) for (engine, code), count in refused.items()),
            ),
            counter(
                "memoria_requests_aborted_total",
                "Requests with an incomplete answer: the client disconnected, or the engine was lost.",
                (({"engine": engine}, count) for engine, count in aborted.items()),
            ),
            counter(
                "memoria_requests_replayed_total",
                "Requests sent again because the engine was lost before it answered.",
                (({"engine": engine}, count) for engine, count in replayed.items()),
            ),
            histogram(
                "memoria_request_duration_seconds",
                "From a request's arrival to the end of the engine's answer.",
                ((labels, duration) for labels, (duration, _) in observed),
            ),
            histogram(
                "memoria_request_first_byte_seconds",
                "From a request's arrival to the first byte of the answer's body.",
                ((labels, first_byte) for labels, (_, first_byte) in observed),
            ),
        )

    def _new_line(self, key: tuple[str | None, str | None, int]) -> _Line:
        where = key[:2]
        if where not in self._histograms:
            self._histograms[where] = (Histogram(BOUNDS), Histogram(BOUNDS))
        line = self._lines[key] = _Line(*self._histograms[where])
        return line
