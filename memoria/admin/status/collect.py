"""Builds a `Status` in bounded time: snapshots, device figures, and the metrics of engines."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary

import aiohttp

from memoria import __version__
from memoria.admin.status.memory_sampler import MemorySample, MemorySampler
from memoria.admin.status.starts import StartTimes
from memoria.admin.status.status import (
    CertificateStatus,
    DeviceStatus,
    EngineStatus,
    GuardStatus,
    MeasuredMemory,
    MemoryPlan,
    PlannedTerm,
    Status,
    Term,
)
from memoria.admin.telemetry.rates import Rates, Speed
from memoria.aio import SingleFlight, Turns
from memoria.engine.actor import EngineActor
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.gpu.device import Device
from memoria.plan.budgets import Holding
from memoria.plan.records import Comparison, Record
from memoria.proxy.admission.admission import Admission
from memoria.proxy.admission.guard import Guarding
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm import client as vllm_client
from memoria.vllm.metrics import EngineLoad, load_of

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 30.0  # seconds; then an engine that hangs is queried again


@dataclass(frozen=True, slots=True)
class Collected:
    """`expositions`: the metrics of every engine that answers, unchanged, in Prometheus's text format."""

    status: Status
    expositions: Mapping[str, bytes]


class Collector:
    """`guarding`, `url` and `certificate`: those of the generation in force."""

    def __init__(
        self,
        supervisor: Supervisor,
        admission: Admission,
        rates: Rates,
        *,
        guarding: Callable[[], Guarding | None],
        url: Callable[[], str],
        certificate: Callable[[], CertificateStatus | None] = lambda: None,
    ) -> None:
        self._supervisor, self._admission, self._rates = supervisor, admission, rates
        self._guarding, self._url, self._certificate = guarding, url, certificate
        # by actor: an engine that was removed and added again begins anew
        self._engines: WeakKeyDictionary[EngineActor, SingleFlight[bytes | None]] = WeakKeyDictionary()
        self._tokens: WeakKeyDictionary[EngineActor, Speed] = WeakKeyDictionary()
        self._holders = MemorySampler(supervisor)
        self._began = time.monotonic()
        self._last_exits: dict[str, str] = {}
        self._starts = StartTimes(supervisor.all_ready)
        supervisor.listen(self._remember)
        supervisor.listen(self._starts.saw)

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._began

    async def status(self, *, hurry: bool = False) -> Status:
        return (await self.collect(hurry=hurry)).status

    async def collect(self, *, hurry: bool = False) -> Collected:
        """An engine or a driver that hangs delays it by one second at most, and only once. In a `hurry` an
        engine does not delay it at all; its own figures are unknown then."""
        names = tuple(self._supervisor.actors)
        memory, texts = await asyncio.gather(
            self._holders.sample(), asyncio.gather(*(self.exposition(name, hurry=hurry) for name in names))
        )
        expositions = {name: text for name, text in zip(names, texts, strict=True) if text is not None}
        return Collected(await self._status(memory, expositions), expositions)

    async def exposition(self, name: str, *, hurry: bool = False) -> bytes | None:
        """The engine's own `/metrics`; None where it does not serve, or does not answer."""
        actor = self._supervisor.actors[name]
        if actor.snapshot.address is None or not FACTS[actor.snapshot.state].serves:
            return None
        try:
            return await self._scrape(actor).answer(hurry=hurry)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.debug("%s: no metrics: %r", name, error)
            return None

    async def used_bytes(self, name: str) -> int | None:
        """Memory of an engine's processes on its device."""
        return (await self._holders.sample()).used.get(name)

    def _scrape(self, actor: EngineActor) -> SingleFlight[bytes | None]:
        if actor not in self._engines:  # the value must not keep its key alive: it knows the name alone
            self._engines[actor] = SingleFlight(partial(self._fetch, actor.name))
        return self._engines[actor]

    async def _fetch(self, name: str) -> bytes:
        address = self._supervisor.actors[name].snapshot.address
        if address is None:
            raise ConnectionError("it has ended")
        return await vllm_client.exposition(address, timeout=ANSWER_TIMEOUT)

    async def _status(self, memory: MemorySample, expositions: Mapping[str, bytes]) -> Status:
        """Each engine's percentiles take a millisecond under load: others are served in between."""
        turns, engines = Turns(), list[EngineStatus]()
        for name in tuple(self._supervisor.actors):
            if name in self._supervisor.actors:  # a reload may have removed it meanwhile
                engines.append(self._engine(name, memory, load_of(expositions.get(name, b""))))
            await turns.give_way()
        return Status(
            version=__version__,
            pid=os.getpid(),
            url=self._url(),
            uptime=self.uptime,
            at=time.time(),
            devices=tuple(
                self._device_status(planned.device, memory) for planned in self._supervisor.plan.devices
            ),
            engines=tuple(engines),
            guard=None if (guarding := self._guarding()) is None else _guard(guarding),
            certificate=self._certificate(),
            ready_after=self._starts.ready_after,
        )

    def _device_status(self, device: Device, memory: MemorySample) -> DeviceStatus:
        now = memory.devices.get(device.uuid)
        return DeviceStatus(
            label=device.label,
            name=device.name,
            total_bytes=device.total_bytes,
            limit_bytes=int(device.total_bytes * self._supervisor.config.gpu_limit),
            used_bytes=None if now is None else now.used_bytes,
            free_bytes=None if now is None else now.free_bytes,
            others=memory.others.get(device.uuid, ()),
        )

    def _remember(self, snapshot: EngineSnapshot) -> None:
        if snapshot.diagnosis is not None:
            self._last_exits[snapshot.name] = snapshot.diagnosis.cause
        actor = self._supervisor.actors.get(snapshot.name)
        if snapshot.state is State.READY and actor is not None:
            scrape = self._scrape(actor)
            if not scrape.has_answered:
                scrape.begin()  # so that its usual duration is known before it may hang

    def _engine(self, name: str, memory: MemorySample, reported: EngineLoad) -> EngineStatus:
        supervisor = self._supervisor
        actor, config = supervisor.actors[name], supervisor.config.engine(name)
        snapshot, device, rate = actor.snapshot, supervisor.plan.device(name), self._rates.rate(name)
        diagnosis, load, fetch = snapshot.diagnosis, self._admission.load(name), snapshot.fetch
        record, serves = supervisor.verifier.latest(name), FACTS[snapshot.state].serves
        waits = FACTS[snapshot.state].is_away and supervisor.on_demand.waits(name)
        return EngineStatus(
            name=name,
            state=snapshot.state.value,
            since=snapshot.since,
            phase=snapshot.phase.value if snapshot.phase else None,
            percent=snapshot.percent,
            fetched_bytes=fetch.done_bytes if fetch else None,
            fetch_total_bytes=fetch.total_bytes if fetch else None,
            fetch_bytes_per_second=fetch.bytes_per_second if fetch else None,
            detail="waits for room" if waits else snapshot.detail or (diagnosis.cause if diagnosis else ""),
            hint=diagnosis.hint if diagnosis else None,
            retry_at=snapshot.retry_at,
            restarts=snapshot.restarts,
            pid=snapshot.pid,
            port=config.port,
            models=config.served_model_name,
            runner=config.runner,
            device=device.label,
            fraction=str(config.gpu_memory_utilization),
            budget_bytes=supervisor.plan.budget(name).requested_bytes,
            used_bytes=memory.used.get(name),
            start_seconds=snapshot.start_seconds,
            kv_tokens=snapshot.figures.kv_tokens,
            planned_kv_tokens=None if record is None else record.planned_kv_tokens,
            plan=() if record is None else tuple(map(_planned_term, record.comparisons)),
            memory_plan=_memory_plan(
                supervisor.verifier.holding(name) or supervisor.plan.holdings.get(name), record
            ),
            concurrency=snapshot.figures.concurrency,
            max_model_len=snapshot.figures.max_model_len,
            kv_usage=reported.kv_usage,
            running=reported.running,
            waiting=reported.waiting,
            in_flight=actor.traffic.in_flight,
            held=load.waiting,
            limit=load.limit,
            requests=actor.traffic.total,
            requests_per_second=rate.requests_per_second if serves else rate.requests_per_second or None,
            tokens_per_second=self._tokens.setdefault(actor, Speed()).per_second(
                reported.tokens(config.runner)
            ),
            ttft_p50=rate.ttft_p50,
            ttft_p95=rate.ttft_p95,
            total_p50=rate.total_p50,
            total_p95=rate.total_p95,
            last_exit=self._last_exits.get(name),
            on_demand=snapshot.on_demand,
            start_spans=self._starts.of(name),
            asleep_bytes=snapshot.sleep.asleep_bytes,
            sleeping_weights_bytes=supervisor.host_memory.of(name) or None,
            sleep_seconds=snapshot.sleep.sleep_seconds,
            wake_seconds=snapshot.sleep.wake_seconds,
            standby=snapshot.standby,
            standby_bytes=None if snapshot.standby is None else memory.standbys.get(name),
        )


def _memory_plan(holding: Holding | None, record: Record | None) -> MemoryPlan | None:
    if holding is None:
        return None
    measured = None
    if record is not None:
        measured = MeasuredMemory(record.weights_bytes, record.graph_bytes, record.kv_bytes)
    return MemoryPlan(
        weights_bytes=holding.weights_bytes,
        step_bytes=holding.step_bytes,
        graph_bytes=holding.graph_bytes,
        kv_bytes=holding.kv_bytes,
        context_bytes=holding.context_bytes,
        bar_bytes=holding.bar_bytes,
        fits=holding.fits,
        doubtful=holding.is_doubtful,
        measured=measured,
    )


def _planned_term(found: Comparison) -> PlannedTerm:
    error = None if found.error is None else round(found.error, 4)
    return PlannedTerm(cast(Term, found.term), found.planned, found.said, error, found.is_notable)


def _guard(guarding: Guarding) -> GuardStatus:
    state = guarding.state
    return GuardStatus(
        engine=guarding.protects,
        neighbours=guarding.neighbours,
        target=guarding.target,
        gap_p95=state.gap_p95,
        limit=state.limit,
        lowered=state.lowered,
    )
