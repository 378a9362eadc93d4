"""Another configuration for a running daemon: read, checked, compared, and only then adopted, at once.

Whatever can fail happens before anything changes: the file, the API keys, the plan with the GPU's fresh
figures, the new addresses. Then memoria's own settings change between two requests; changed engines restart
one after another afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from memoria.config.changes import Changes, compare
from memoria.config.load import load
from memoria.config.model import Config
from memoria.config.report import key_name
from memoria.engine.aside import in_daemon_thread
from memoria.engine.journal import Journal
from memoria.engine.lifecycle import State
from memoria.errors import ConfigError, MemoriaError, Problem, UnavailableError
from memoria.front import Front
from memoria.gpu.device import DeviceReader
from memoria.listen import Listeners
from memoria.proxy.admission import Admission
from memoria.proxy.guarding import Guarding
from memoria.proxy.keys import Keys
from memoria.routing import EngineRouter
from memoria.server import Server
from memoria.supervisor.preflight import Preflight, preflight
from memoria.supervisor.roll import Roll, order
from memoria.supervisor.supervisor import Supervisor

PATIENCE = 60.0  # seconds for reading the GPU and looking for the models


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
        self._roll = Roll(supervisor)
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
                        self._journal.add("memoria", "reload refused, nothing has changed", told)
                raise
        return Reloaded(checked.changes, self._given_up(), checked.config.warnings, applied=not dry_run)

    async def on_signal(self) -> None:
        """SIGHUP: there is nobody to raise to; the journal tells."""
        with contextlib.suppress(MemoriaError):
            await self.reload()

    def cancel(self) -> None:
        self._roll.cancel()

    async def _check(self) -> _Checked:
        if self._config.path is None:
            raise UnavailableError("this configuration is not from a file, and cannot be read again")
        path, environ = self._config.path, self._environ
        config = load(path, environ)
        if fixed := compare(self._config, config).fixed:
            raise ConfigError(_needs_restart(config, key) for key in fixed)
        keys = Keys.of(config.access)
        try:
            async with asyncio.timeout(PATIENCE):
                checked = await in_daemon_thread(lambda: preflight(config, self._reader, environ))
        except TimeoutError:
            raise UnavailableError(f"the GPU driver has not answered for {PATIENCE:g} s") from None
        checked.raise_for_errors()
        settled = checked.config  # with a fraction for every engine, as the one in force
        return _Checked(settled, compare(self._config, settled), checked, keys)

    async def _adopt(self, checked: _Checked) -> None:
        config, changes = checked.config, checked.changes
        install, plan = checked.preflight.complete()
        change = self._listeners.open_new(config)
        restarts = order([*(r.engine for r in changes.restarts)], self._supervisor.plan, plan)
        restarts += [name for name in self._given_up() if name not in restarts]
        retired = self._supervisor.adopt(config, plan, install)
        self._router.adopt(config)
        guarding = Guarding(config, config.guard, self._admission) if config.guard else None
        self._front.adopt(config, checked.keys, guarding)
        self._server.set_drain(config.timeouts.drain)
        self._config = config
        self._on_adopted(config, guarding)
        for opened in change.opened.values():
            for listener in opened:
                await self._server.accept(listener)
        for closed in change.closed.values():
            for listener in closed:
                self._server.ignore(listener)
        self._listeners.adopt(change)
        self._journal.add("memoria", "reloaded", _told(changes) or "nothing has changed")
        self._roll.begin(retired, restarts, changes.added)

    def _given_up(self) -> tuple[str, ...]:
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
