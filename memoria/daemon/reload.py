"""Another configuration for a running daemon: read, checked, compared, and only then adopted, at once.

Whatever can fail happens before anything changes: the file, the API keys, the plan with the GPU's fresh
figures, the new addresses. Then memoria's own settings change between two requests; changed engines restart
one after another afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from memoria.aio import in_daemon_thread
from memoria.config.diff import Changes, compare
from memoria.config.load import load
from memoria.config.model import Config
from memoria.config.report import key_name
from memoria.daemon.engine_router import EngineRouter
from memoria.daemon.front import Front
from memoria.daemon.listeners import Change, Listeners, close
from memoria.daemon.server import Server
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.errors import ConfigError, MemoriaError, Problem, UnavailableError
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight, preflight
from memoria.proxy.access.keys import Keys
from memoria.proxy.admission.admission import Admission
from memoria.proxy.admission.guarding import Guarding
from memoria.supervisor.rolling_restart import RollingRestart, order
from memoria.supervisor.supervisor import Supervisor

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for reading the file, and for reading the GPU and looking for the models


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did, or would do. `failed` are engines that had given up and get another try."""

    changes: Changes
    failed: tuple[str, ...]
    warnings: tuple[Problem, ...]
    applied: bool

    def to_json(self) -> dict[str, Any]:
        return {"applied": self.applied, "failed": self.failed, **asdict(self.changes)} | {
            "warnings": [asdict(warning) for warning in self.warnings]
        }


@dataclass(frozen=True, slots=True)
class _Checked:
    config: Config
    changes: Changes
    preflight: Preflight
    keys: Keys


class Reloader:
    """`on_adopted` is told the new configuration in the moment it counts."""

    def __init__(
        self,
        config: Config,
        *,
        supervisor: Supervisor,
        front: Front,
        router: EngineRouter,
        admission: Admission,
        listeners: Listeners,
        server: Server,
        reader: DeviceReader,
        environ: Mapping[str, str],
        journal: Journal,
        on_adopted: Callable[[Config, Guarding | None], None],
    ) -> None:
        self._config, self._supervisor, self._front = config, supervisor, front
        self._router, self._admission = router, admission
        self._listeners, self._server = listeners, server
        self._reader, self._environ, self._journal = reader, environ, journal
        self._on_adopted = on_adopted
        self._roll = RollingRestart(supervisor)
        self._late: set[asyncio.Task[None]] = set()
        supervisor.listen(self._on_engine)
        self._closing = False
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, *, dry_run: bool = False) -> Reloaded:
        """Raises `MemoriaError` with every problem; then nothing has changed."""
        async with self._one_at_a_time:
            try:
                checked = await self._check()
                if not dry_run:
                    await self._adopt(checked)
            except MemoriaError as error:
                if not dry_run:
                    for problem in error.problems:
                        told = "; ".join((problem.what, *problem.where))
                        self._journal.add_event(EventKind.RELOAD_REFUSED, "memoria", told)
                raise
            except Exception as error:
                self._journal.add_event(EventKind.RELOAD_FAILED, "memoria", repr(error))
                raise
        return Reloaded(checked.changes, self._given_up(), checked.config.warnings, applied=not dry_run)

    async def on_signal(self) -> None:
        """SIGHUP: there is nobody to raise to; the journal tells."""
        try:
            await self.reload()
        except MemoriaError:
            pass
        except Exception:
            logger.exception("a reload failed")

    def cancel(self) -> None:
        """memoria stops: what is under way is not finished."""
        self._closing = True
        self._roll.cancel()
        for task in self._late:
            task.cancel()

    def _on_engine(self, snapshot: EngineSnapshot) -> None:
        if not FACTS[snapshot.state].has_process and self._listeners.are_late:  # perhaps it had the port
            task = asyncio.create_task(self._open_late(), name="late ports")
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _open_late(self) -> None:
        async with self._one_at_a_time:
            opened, problems = self._listeners.open_late(self._config)
            for listener in opened:
                port = listener.getsockname()[1]
                try:
                    await self._server.open(listener)
                    await self._server.accept(listener)
                except OSError as error:  # out of descriptors
                    problems.append(Problem(f"cannot listen on port {port}: {error.strerror}"))
                else:
                    self._journal.add_event(
                        EventKind.LISTENING, "memoria", f"port {port}, given up by an engine"
                    )
        for problem in problems:
            told = "; ".join((problem.what, *problem.where))
            self._journal.add_event(EventKind.CANNOT_LISTEN, "memoria", told)

    async def _check(self) -> _Checked:
        if self._config.path is None:
            raise UnavailableError("this configuration is not from a file, and cannot be read again")
        path, environ = self._config.path, self._environ
        try:
            async with asyncio.timeout(PATIENCE):
                config = await in_daemon_thread(lambda: load(path, environ))
                if fixed := compare(self._config, config).fixed:
                    raise ConfigError(_needs_restart(config, key) for key in fixed)
                keys = await in_daemon_thread(lambda: Keys.of(config.access))
        except TimeoutError:
            raise UnavailableError(f"the configuration could not be read within {PATIENCE:g} s") from None
        try:
            async with asyncio.timeout(PATIENCE):
                checked = await in_daemon_thread(lambda: preflight(config, self._reader, environ))
        except TimeoutError:
            raise UnavailableError(f"the GPU driver has not answered for {PATIENCE:g} s") from None
        checked.raise_for_errors()
        settled = checked.config  # with a fraction for every engine, as the one in force
        return _Checked(settled, compare(self._config, settled), checked, keys)

    async def _adopt(self, checked: _Checked) -> None:
        """Raises `UnavailableError` when the new addresses cannot be had; then nothing has changed."""
        config, changes = checked.config, checked.changes
        install, plan = checked.preflight.complete()
        guarding = Guarding(config, config.guard, self._admission) if config.guard else None
        change = await self._open(config)
        restarts = order([*(r.engine for r in changes.restarts)], self._supervisor.plan, plan)
        retired = self._supervisor.adopt(config, plan, install)
        restarts += [name for name in self._given_up() if name not in restarts]
        self._router.adopt(config)
        self._front.adopt(config, checked.keys, guarding)
        self._server.set_drain(config.timeouts.drain)
        self._config = config
        self._on_adopted(config, guarding)
        for listener in change.old:
            self._server.ignore(listener)
        self._listeners.adopt(change)
        for listener in change.new:
            await self._server.accept(listener)
        self._journal.add_event(EventKind.RELOADED, "memoria", _told(changes) or "nothing has changed")
        self._roll.begin(retired, restarts, changes.added)

    async def _open(self, config: Config) -> Change:
        """Listens on what is new, but answers nobody there yet. Raises `UnavailableError`, and then
        leaves nothing."""
        own_pids = await self._supervisor.own_pids()
        change, trouble = self._listeners.open_new(config, own_pids), None
        try:
            for listener in change.new:
                await self._server.open(listener)
        except OSError as error:
            trouble = f"cannot listen on the new addresses: {error.strerror}"
        if self._closing:  # meanwhile
            trouble = "memoria is stopping"
        if trouble is not None:
            for listener in change.new:
                self._server.ignore(listener)
            close(change.new)
            raise UnavailableError(trouble)
        return change

    def _given_up(self) -> tuple[str, ...]:
        """Of the engines that are in the configuration."""
        return tuple(s.name for s in self._supervisor.snapshots() if s.state is State.FAILED)


def _needs_restart(config: Config, key: str) -> Problem:
    mark = config.where(*key.split("."))
    where = (f"{mark}  {key_name(tuple(key.split('.')))}",) if mark else ()
    return Problem(f"`{key}` cannot be reloaded", where, "restart memoria, or set it back")


def _told(changes: Changes) -> str:
    parts = [", ".join(changes.live)] if changes.live else []
    parts += [f"{r.engine} restarts ({', '.join(r.keys)})" for r in changes.restarts]
    parts += [f"{name} is new" for name in changes.added]
    parts += [f"{name} is stopped" for name in changes.removed]
    return "; ".join(parts)
