"""All engines together: started in the file's order, passing their device's gate one by one, and ended with
the daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.engine.actor import EngineActor
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import FACTS, Event
from memoria.engine.log import LogFile
from memoria.engine.process.table import ProcessTable
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.traffic import Flow
from memoria.errors import UnavailableError
from memoria.gpu.device import DeviceReader
from memoria.gpu.host import host_memory
from memoria.plan.plan import Plan
from memoria.preflight.preflight import Deployment
from memoria.preflight.records import Records, records_dir
from memoria.supervisor.device_memory import DeviceMemory
from memoria.supervisor.gate import GpuGate
from memoria.supervisor.host_memory import HostMemory
from memoria.supervisor.mps import Mps
from memoria.supervisor.on_demand import OnDemand
from memoria.supervisor.passengers import Passengers
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.supervised_host import SupervisedHost
from memoria.supervisor.verifier import Verifier
from memoria.text import suggestion
from memoria.vllm.fetch.fetcher import Fetcher

logger = logging.getLogger(__name__)


class ResidentError(UnavailableError):
    """Of an engine that never gives its memory back to another."""


class Supervisor:
    """Owns the engines' actors from `open` to `close`, and holds the deployment in force.

    `actors` is replaced by a reload, never changed; `names` is a live view of its keys. `memories`: by the
    devices' UUIDs."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        reader: DeviceReader,
        runtime: RuntimeDir,
        journal: Journal,
        environ: Mapping[str, str],
        plugin_dir: Path,
    ) -> None:
        self._deployment, self.journal = deployment, journal
        self._reader, self._runtime = reader, runtime
        self._environ, self._plugin_dir = environ, plugin_dir
        self.process_table = ProcessTable()
        self._passengers = Passengers(runtime.gate_socket)
        self.verifier = Verifier(Records(records_dir(deployment.config, environ)), environ, journal)
        self._fetcher = Fetcher()
        self.host_memory = HostMemory(lambda: host_memory()[1])
        self.memories: dict[str, DeviceMemory] = {}
        self._gates: dict[str, GpuGate] = {}
        self._listeners: list[Callable[[EngineSnapshot], None]] = []
        self._tasks: dict[EngineActor, asyncio.Task[None]] = {}
        self._flow_of: Callable[[str], Flow] | None = None
        self._closing = False
        self.on_demand = OnDemand(lambda: self.actors, lambda: self._deployment, journal)
        self._scheduling: asyncio.Task[None] | None = None
        self._change = asyncio.Event()  # of any engine's snapshot
        self._restarting: asyncio.Task[None] | None = None
        self._mps = self._make_mps() if deployment.config.mps else None
        self._open_devices()
        self.actors: Mapping[str, EngineActor] = {
            engine.name: self._actor(engine) for engine in deployment.config.engines
        }
        self.names: Collection[str] = _Names(self)

    def __repr__(self) -> str:
        return f"<Supervisor {', '.join(repr(actor) for actor in self.actors.values())}>"

    @property
    def config(self) -> Config:
        return self._deployment.config

    @property
    def plan(self) -> Plan:
        return self._deployment.plan

    def _open_devices(self) -> None:
        for planned in self.plan.devices:
            uuid, label = planned.device.uuid, planned.device.label
            self.memories.setdefault(uuid, DeviceMemory(self._reader, uuid))
            self._gates.setdefault(uuid, GpuGate(label, self.journal))

    def _host(self, engine: EngineConfig) -> SupervisedHost:
        uuid = self.plan.device(engine.name).uuid
        return SupervisedHost(
            deployment=self._deployment,
            engine=engine,
            gate=self._gates[uuid],
            memory=self.memories[uuid],
            passengers=self._passengers,
            runtime=self._runtime,
            environ=self._environ,
            plugin_dir=self._plugin_dir,
            own_pids=self.own_pids,
            process_table=self.process_table,
            verifier=self.verifier,
            fetcher=self._fetcher,
            host_memory=self.host_memory,
            mps=self._mps,
        )

    def _make_mps(self) -> Mps:
        return Mps(
            self._runtime,
            self.config.logging.dir / "mps",
            self._environ,
            process_table=self.process_table,
            journal=self.journal,
            restart=self.config.restart,
            serves=lambda: any(FACTS[actor.state].serves for actor in self.actors.values()),
            on_lost=self._mps_lost,
        )

    def _mps_lost(self) -> None:
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart_serving(), name="restarts after MPS")

    async def _restart_serving(self) -> None:
        """In the file's order: each has its place at the gate before the next one ends. An engine that is
        still starting fails by itself, and is started again."""
        for actor in tuple(self.actors.values()):
            if not FACTS[actor.state].serves or self._closing:
                continue
            before = actor.snapshot.start_id
            actor.restart(now=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.timeouts.release):
                    while actor.snapshot.start_id in (None, before):
                        await self._change.wait()

    def watch_flow(self, flow_of: Callable[[str], Flow]) -> None:
        """Gives every actor, now and later, what the proxy sees of its engine's responses."""
        self._flow_of = flow_of
        for actor in self.actors.values():
            actor.traffic.flow = partial(flow_of, actor.name)

    def _actor(self, engine: EngineConfig) -> EngineActor:
        actor = EngineActor(
            engine.name,
            self._host(engine),
            LogFile.of(self.config.logging, engine.name),
            self.journal,
            timeouts=self.config.timeouts,
            restart=self.config.restart,
            on_change=self._changed,
        )
        if self._flow_of is not None:
            actor.traffic.flow = partial(self._flow_of, engine.name)
        actor.traffic.on_idle = partial(self.on_demand.on_idle, engine.name)
        return actor

    def switch_to(self, deployment: Deployment) -> list[EngineActor]:
        """Puts another deployment in force: every engine has its new settings at its next start, new engines
        exist and rest. Returns the actors of removed engines, to be retired.

        An engine that returns while it is being retired keeps its actor: two of one name would share a log
        and take each other's requests."""
        self._deployment = deployment
        config = deployment.config
        self._open_devices()
        before = dict(self.actors)
        leaving = {actor.name: actor for actor in self._tasks if before.get(actor.name) is not actor}
        actors: dict[str, EngineActor] = {}
        for engine in config.engines:
            actor = before.pop(engine.name, None) or leaving.get(engine.name)
            if actor is None:
                actor = self._actor(engine)
                self._run(actor)
            else:
                actor.adopt(self._host(engine), config.timeouts, config.restart)
                actor.log.limit(max_bytes=config.logging.max_bytes, keep=config.logging.keep)
            actors[engine.name] = actor
        self.actors = actors
        self.on_demand.look()
        return list(before.values())

    async def retire(self, actor: EngineActor) -> None:
        """Drains and stops a removed engine, unless it returns meanwhile. Its actor goes on as long as its
        memory is held: only it can open the device's gate again."""
        actor.stop()
        await actor.at_rest()
        if self.actors.get(actor.name) is actor:
            return
        if (task := self._tasks.pop(actor, None)) is not None:
            task.cancel()

    def _run(self, actor: EngineActor) -> None:
        self._tasks[actor] = asyncio.create_task(actor.run(), name=actor.name)

    def try_logs(self) -> None:
        """Raises `UnavailableError` if an engine's log cannot be written or read."""
        for actor in self.actors.values():
            actor.log.try_out()

    async def open(self) -> None:
        """Starts every resident engine, in the file's order; the others once they are needed. Raises
        `UnavailableError` if MPS does not come up."""
        await self._passengers.open()
        if self._mps is not None:
            await self._mps.open()
        for actor in self.actors.values():
            self._run(actor)
            actor.start()
            if self.config.engine(actor.name).preload:
                self.on_demand.want(actor.name, "preload")
        self._scheduling = asyncio.create_task(self.on_demand.run(), name="engines on demand")

    async def close(self) -> None:
        """Drains and stops all engines at once and waits until none of their processes is left."""
        self._closing = True
        for task in (self._scheduling, self._restarting):
            if task is not None:
                task.cancel()
        for actor in self._tasks:
            actor.stop()
        await asyncio.gather(*(actor.settled() for actor in self._tasks))
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._mps is not None:
            await self._mps.close()
        await self.verifier.settled()
        await self._passengers.close()

    def hurry(self) -> None:
        """Ends every drain and every grace period: the engines are killed now."""
        for actor in self._tasks:
            actor.stop(now=True)

    # A person's wishes. Each raises `UnavailableError` for an unknown engine, and once memoria stops.

    def start(self, name: str, by: str) -> None:
        self._start(self._wish(EventKind.START_REQUESTED, name, by))

    def stop(self, name: str, by: str, *, now: bool = False) -> None:
        self._wish(EventKind.STOP_REQUESTED, name, by, now=now).stop(now=now, in_turn=True)

    def restart(self, name: str, by: str, *, now: bool = False) -> None:
        actor = self._wish(EventKind.RESTART_REQUESTED, name, by, now=now)
        if actor.snapshot.on_demand and not FACTS[actor.state].has_process:
            self._start(actor)
        else:
            away = FACTS[actor.state].is_away
            actor.restart(now=now)
            if away:
                self.on_demand.want(name, "hand")

    def wake(self, name: str, by: str, *, seconds: float = 0.0) -> None:
        """Raises `ResidentError` for an engine that is not on demand. `seconds` in which its `ttl` does not
        end it."""
        self._check_on_demand(name)
        self._start(self._wish(EventKind.WAKE_REQUESTED, name, by))
        self.on_demand.keep(name, seconds)

    def sleep(self, name: str, by: str) -> None:
        """Raises as `wake` does."""
        self._check_on_demand(name)
        actor = self._wish(EventKind.SLEEP_REQUESTED, name, by)
        self.on_demand.forget(name)
        actor.schedule(Event.YIELD)

    def _check_on_demand(self, name: str) -> None:
        if not self.actor(name).snapshot.on_demand:
            raise ResidentError(f"engine `{name}` is resident: it is not `on_demand`")

    def _start(self, actor: EngineActor) -> None:
        """An engine on demand is woken too, once there is room."""
        actor.start()
        if actor.snapshot.on_demand:
            self.on_demand.want(actor.name, "hand")

    def _wish(self, kind: EventKind, name: str, by: str, *, now: bool = False) -> EngineActor:
        actor = self.actor(name)
        if self._closing:
            raise UnavailableError("memoria is stopping")
        self.journal.add_event(kind, name, f"{by}, now" if now else by)
        return actor

    def snapshots(self) -> tuple[EngineSnapshot, ...]:
        return tuple(actor.snapshot for actor in self.actors.values())

    def all_ready(self) -> bool:
        """Ready, or away on demand."""
        return all(snapshot.is_healthy for snapshot in self.snapshots())

    def listen(self, listener: Callable[[EngineSnapshot], None]) -> None:
        self._listeners.append(listener)

    async def own_pids(self) -> set[int]:
        """The processes of all engines, read now: what they hold on the device is memoria's own."""
        try:
            await self.process_table.look()
        except OSError as error:
            logger.warning("the engines' processes are not all known: %s", error)
        return self.pids()

    def pids(self) -> set[int]:
        """The processes of all engines, and of MPS, as last read."""
        mps = set() if self._mps is None else self._mps.pids
        return mps | {pid for actor in self._tasks for pid in actor.pids()}

    def start_ids(self) -> set[str]:
        """The living starts, the standbys and MPS: every id that marks memoria's processes."""
        mps = set() if self._mps is None or self._mps.start_id is None else {self._mps.start_id}
        return mps | {start for actor in self._tasks for start in actor.start_ids}

    def actor(self, name: str) -> EngineActor:
        try:
            return self.actors[name]
        except KeyError:
            raise UnavailableError(
                f"there is no engine `{name}`", hint=suggestion(name, self.actors)
            ) from None

    def _changed(self, snapshot: EngineSnapshot) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()
        for listener in (self.on_demand.on_change, self._verify, *self._listeners):
            try:
                listener(snapshot)
            except Exception:  # a screen's bug must not stop an engine's task
                logger.exception("a listener failed")

    def _verify(self, snapshot: EngineSnapshot) -> None:
        if snapshot.name in self.actors:  # else it is being retired
            self.verifier.on_change(snapshot, self._deployment)


class _Names(Collection[str]):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def __contains__(self, name: object) -> bool:
        return name in self._supervisor.actors

    def __iter__(self) -> Iterator[str]:
        return iter(self._supervisor.actors)

    def __len__(self) -> int:
        return len(self._supervisor.actors)
