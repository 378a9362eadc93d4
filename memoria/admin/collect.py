"""Building a `Status`: snapshots, device figures and what the engines say of themselves, bounded in time."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time

import aiohttp
import psutil

from memoria import __version__
from memoria.admin.rates import Rates
from memoria.admin.status import DeviceStatus, EngineStatus, Status
from memoria.engine import probe
from memoria.engine.address import EngineAddress
from memoria.engine.lifecycle import State
from memoria.errors import MemoriaError
from memoria.gpu.device import Device
from memoria.proxy.admission import Admission
from memoria.supervisor.supervisor import Supervisor

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds: a hanging engine or driver must not delay a status

# vllm/v1/metrics/loggers.py; one line per engine core, summed (usage: the highest)
SERIES = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{[^}]*\} ([-+\w.]+)", re.M
)


class Collector:
    def __init__(self, supervisor: Supervisor, admission: Admission, rates: Rates, url: str) -> None:
        self._supervisor, self._admission = supervisor, admission
        self._rates, self._url = rates, url
        self._began = time.monotonic()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._began

    async def status(self) -> Status:
        names = tuple(self._supervisor.actors)
        devices, engines = await asyncio.gather(
            self._devices(), asyncio.gather(*(self._gauges(name) for name in names))
        )
        return Status(
            version=__version__,
            pid=os.getpid(),
            url=self._url,
            uptime=self.uptime,
            at=time.time(),
            devices=tuple(
                DeviceStatus(
                    planned.device.label,
                    planned.device.name,
                    planned.device.total_bytes,
                    None if (now := devices.get(planned.device.uuid)) is None else now.used_bytes,
                    None if now is None else now.free_bytes,
                )
                for planned in self._supervisor.plan.devices
            ),
            engines=tuple(
                self._engine(name, devices, gauges) for name, gauges in zip(names, engines, strict=True)
            ),
        )

    def used_bytes(self, name: str, device: Device | None) -> int | None:
        """What an engine's processes hold on its device; on a host their resident memory."""
        pids = set(self._supervisor.actors[name].pids())
        if device is None or not pids:
            return None
        if device.is_host:
            return sum(_resident(pid) for pid in pids)
        held = [process.used_bytes for process in device.processes if process.pid in pids]
        return None if None in held else sum(size for size in held if size is not None)

    async def _devices(self) -> dict[str, Device]:
        found = {}
        for uuid, memory in self._supervisor.memories.items():
            try:
                async with asyncio.timeout(PATIENCE):
                    found[uuid] = await memory.read()
            except (MemoriaError, TimeoutError) as error:
                logger.warning("no figures of device %s: %s", uuid, str(error) or "no answer")
        return found

    async def _gauges(self, name: str) -> dict[str, float]:
        snapshot = self._supervisor.actors[name].snapshot
        if snapshot.address is None or snapshot.state not in (State.READY, State.DRAINING):
            return {}
        try:
            return _parse(await _fetch(snapshot.address, "/metrics"))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.debug("%s: no metrics: %r", name, error)
            return {}

    def _engine(self, name: str, devices: dict[str, Device], gauges: dict[str, float]) -> EngineStatus:
        supervisor = self._supervisor
        actor, config = supervisor.actors[name], supervisor.config.engine(name)
        snapshot, device, rate = actor.snapshot, supervisor.plan.device(name), self._rates.of(name)
        running, waiting = gauges.get("num_requests_running"), gauges.get("num_requests_waiting")
        diagnosis, load = snapshot.diagnosis, self._admission.load(name)
        return EngineStatus(
            name=name,
            state=snapshot.state.value,
            since=snapshot.since,
            phase=snapshot.phase.value if snapshot.phase else None,
            percent=snapshot.percent,
            detail=snapshot.detail or (diagnosis.cause if diagnosis else ""),
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
            used_bytes=self.used_bytes(name, devices.get(device.uuid)),
            start_seconds=snapshot.start_seconds,
            kv_tokens=snapshot.figures.kv_tokens,
            concurrency=snapshot.figures.concurrency,
            max_model_len=snapshot.figures.max_model_len,
            kv_usage=gauges.get("kv_cache_usage_perc"),
            running=None if running is None else int(running),
            waiting=None if waiting is None else int(waiting),
            in_flight=actor.traffic.in_flight,
            held=load.waiting,
            limit=load.limit,
            requests=actor.traffic.total,
            requests_per_second=rate.requests_per_second,
            ttft_p95=rate.ttft_p95,
        )


def _parse(exposition: str) -> dict[str, float]:
    gauges: dict[str, float] = {}
    for series, text in SERIES.findall(exposition):
        value = float(text)
        before = gauges.get(series, 0.0)
        gauges[series] = max(before, value) if series == "kv_cache_usage_perc" else before + value
    return gauges


async def _fetch(address: EngineAddress, path: str) -> str:
    async with (
        probe.session(address, PATIENCE) as client,
        client.get(probe.base_url(address) + path) as answer,
    ):
        return await answer.text()


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
