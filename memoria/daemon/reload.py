"""A reload: build the next generation, compare it, bind its addresses, switch to it, restart what changed.

All that can fail comes before anything changes: the file, the API keys, the plan with the GPU's fresh
figures, the new addresses. Then memoria's own settings change between two requests, and changed engines
restart one after another.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from memoria.admin.api.openapi import Reloaded
from memoria.aio import in_daemon_thread
from memoria.config.diff import Changes, compare
from memoria.config.load import load
from memoria.config.model import Config
from memoria.config.report import key_name
from memoria.daemon.gateway import Gateway
from memoria.daemon.generation import Generation, build_generation, read_files
from memoria.daemon.listeners import Change, Listeners, close
from memoria.daemon.server import Server
from memoria.daemon.tls import Certificate, ServerContext
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.errors import ConfigError, MemoriaError, Problem, UnavailableError
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import preflight
from memoria.proxy.access.keys import Keys
from memoria.supervisor.rolling_restart import RollingRestart, order
from memoria.supervisor.supervisor import Supervisor

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_TIMEOUT = 60.0  # seconds for the files, and again for the GPU and the models


class Reloader:
    """Makes one reload at a time."""

    def __init__(
        self,
        gateway: Gateway,
        supervisor: Supervisor,
        *,
        listeners: Listeners,
        server: Server,
        tls: ServerContext,
        reader: DeviceReader,
        environ: Mapping[str, str],
        journal: Journal,
    ) -> None:
        self._gateway, self._supervisor = gateway, supervisor
        self._listeners, self._server, self._tls = listeners, server, tls
        self._reader, self._environ, self._journal = reader, environ, journal
        self._rolling = RollingRestart(supervisor)
        self._signalled: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()
        supervisor.listen(self._on_engine)
        self._closing = False
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, *, dry_run: bool = False) -> Reloaded:
        """Raises `MemoriaError` with every problem; then nothing has changed."""
        async with self._one_at_a_time:
            try:
                generation = await self._next_generation()
                changes = compare(self._config, generation.config)
                if "tls" not in changes.live and _was_renewed(
                    self._gateway.generation.certificate, generation.certificate
                ):
                    changes = replace(changes, live=(*changes.live, "tls"))
                if not dry_run:
                    await self._switch_to(generation, changes)
            except MemoriaError as error:
                if not dry_run:
                    for problem in error.problems:
                        self._journal.add_event(EventKind.RELOAD_REFUSED, "memoria", problem.line)
                raise
            except Exception as error:
                self._journal.add_event(EventKind.RELOAD_FAILED, "memoria", repr(error))
                raise
        return Reloaded(
            applied=not dry_run,
            live=changes.live,
            fixed=changes.fixed,
            restarts=changes.restarts,
            added=changes.added,
            removed=changes.removed,
            failed=self._given_up(),
            warnings=generation.config.warnings,
        )

    def on_signal(self) -> None:
        """SIGHUP: reloads in a task. Refusals are in the journal already."""
        self._signalled = asyncio.create_task(self._reload_on_signal(), name="reload on SIGHUP")

    async def _reload_on_signal(self) -> None:
        try:
            for warning in (await self.reload()).warnings:
                logger.warning("%s", warning.line)
        except MemoriaError:
            pass
        except Exception:
            logger.exception("a reload failed")

    def cancel(self) -> None:
        """memoria stops: pending restarts and late ports are given up, a reload under way is refused."""
        self._closing = True
        self._rolling.cancel()
        for task in self._late:
            task.cancel()

    @property
    def _config(self) -> Config:
        return self._gateway.generation.config

    def _on_engine(self, snapshot: EngineSnapshot) -> None:
        if not FACTS[snapshot.state].has_process and self._listeners.are_late:  # perhaps it had the port
            task = asyncio.create_task(self._open_late(), name="late ports")
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _open_late(self) -> None:
        async with self._one_at_a_time:
            # in a thread: a host's name may take the resolver a while
            opened, problems = await in_daemon_thread(lambda: self._listeners.open_late(self._config))
            for listener in opened:
                port = listener.getsockname()[1]
                try:
                    await self._server.open(listener, tls=self._tls.certificate is not None)
                    await self._server.accept(listener)
                except OSError as error:  # out of descriptors
                    problems.append(Problem(f"cannot listen on port {port}: {error.strerror}"))
                else:
                    self._journal.add_event(
                        EventKind.LISTENING, "memoria", f"port {port}, given up by an engine"
                    )
        for problem in problems:
            self._journal.add_event(EventKind.CANNOT_LISTEN, "memoria", problem.line)

    async def _next_generation(self) -> Generation:
        """Raises `MemoriaError`."""
        if self._config.path is None:
            raise UnavailableError("this configuration is not from a file, and cannot be read again")
        path, environ = self._config.path, self._environ

        def read() -> tuple[Config, Keys, Certificate | None]:
            config = load(path, environ)
            if fixed := compare(self._config, config).fixed:
                raise ConfigError(_needs_restart(config, key) for key in fixed)
            keys, certificate = read_files(config)
            if certificate is not None:
                config = replace(config, warnings=config.warnings + certificate.warnings)
            return config, keys, certificate

        config, keys, certificate = await _in_time(read, "the configuration could not be read within {:g} s")
        checked = await _in_time(
            lambda: preflight(config, self._reader, environ), "the GPU driver has not answered for {:g} s"
        )
        return build_generation(checked.deployment(), keys, certificate)

    async def _switch_to(self, generation: Generation, changes: Changes) -> None:
        """Raises `UnavailableError` if a new address cannot be bound; then nothing has changed."""
        change, again = await self._open(generation)
        plan_before = self._supervisor.plan
        retired = self._supervisor.switch_to(generation.deployment)
        restarts = order([*(r.engine for r in changes.restarts)], plan_before, generation.deployment.plan)
        restarts += [name for name in self._given_up() if name not in restarts]
        self._gateway.switch_to(generation)
        self._tls.certificate = generation.certificate
        for listener in change.old:
            self._server.ignore(listener)
        self._listeners.commit(change)
        for listener in (*change.new, *again):
            await self._server.accept(listener)
        self._journal.add_event(EventKind.RELOADED, "memoria", _summary(changes) or "nothing has changed")
        self._rolling.begin(retired, restarts, changes.added)

    async def _open(self, generation: Generation) -> tuple[Change, list[socket.socket]]:
        """Binds the new addresses, and accepts no connection there yet; also returns the sockets that stay,
        where they will speak TLS for the first time, or no longer. Raises `UnavailableError`, and then leaves
        nothing open."""
        own_pids = await self._supervisor.own_pids()
        change = await in_daemon_thread(lambda: self._listeners.open_new(generation.config, own_pids))
        tls = generation.certificate is not None
        turned = tls is not (self._tls.certificate is not None)
        again = [listener for listener in self._listeners.sockets if turned and listener not in change.old]
        trouble = None
        try:
            for listener in (*change.new, *again):
                await self._server.open(listener, tls=tls)
        except OSError as error:
            trouble = f"cannot listen on the new addresses: {error.strerror}"
        if self._closing:  # meanwhile
            trouble = "memoria is stopping"
        if trouble is not None:
            for listener in (*change.new, *again):
                self._server.drop(listener)
            close(change.new)
            raise UnavailableError(trouble)
        return change, again

    def _given_up(self) -> tuple[str, ...]:
        """The engines that are failed, of those in the configuration."""
        return tuple(s.name for s in self._supervisor.snapshots() if s.state is State.FAILED)


async def _in_time(work: Callable[[], T], trouble: str) -> T:
    """Runs it in a thread that may hang. Raises `UnavailableError` after `READ_TIMEOUT`."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await in_daemon_thread(work)
    except TimeoutError:
        raise UnavailableError(trouble.format(READ_TIMEOUT)) from None


def _was_renewed(old: Certificate | None, new: Certificate | None) -> bool:
    return old is not None and new is not None and old.sha256 != new.sha256


def _needs_restart(config: Config, key: str) -> Problem:
    mark = config.where(*key.split("."))
    where = (f"{mark}  {key_name(tuple(key.split('.')))}",) if mark else ()
    return Problem(f"`{key}` cannot be reloaded", where, "restart memoria, or set it back")


def _summary(changes: Changes) -> str:
    parts = [", ".join(changes.live)] if changes.live else []
    parts += [f"{r.engine} restarts ({', '.join(r.keys)})" for r in changes.restarts]
    parts += [f"{name} is new" for name in changes.added]
    parts += [f"{name} is stopped" for name in changes.removed]
    return "; ".join(parts)
