"""A standby: a second process of an engine, all imported, that waits at the gate and holds no device memory.

It costs the host memory of the imports. When the engine dies, the standby becomes its next start, which then
takes only what lies behind the gate; another standby is made once that is ready. Only an engine whose
passenger has held it at the gate may have one: a core that went on by itself would take device memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import StrEnum

from memoria.config.model import Restart
from memoria.engine.events import EventKind, Journal
from memoria.engine.host import EngineHost
from memoria.engine.lifecycle import backoff
from memoria.engine.log import Follower, LogFile
from memoria.engine.start import ENDING, Start
from memoria.errors import MemoriaError

logger = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at its log


class StandbyState(StrEnum):
    IMPORTING = "importing"
    WAITING = "waiting"


class Standby:
    """One engine's. It writes to a file beside the engine's `log`, so that its lines are not mistaken for the
    running engine's. `on_change`: called with its state, None when there is none."""

    def __init__(
        self, engine: str, log: LogFile, journal: Journal, on_change: Callable[[StandbyState | None], None]
    ) -> None:
        self._engine, self._log, self._journal, self._listener = engine, log, journal, on_change
        self._changed = asyncio.Event()
        self._start: Start | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def start_id(self) -> str | None:
        return self._start.id if self._start is not None else None

    @property
    def is_waiting(self) -> bool:
        """Only then it may be taken: one that imports may never reach the gate."""
        start = self._start
        return (
            start is not None
            and start.process is not None
            and start.process.is_running
            and start.waits_at_gate
        )

    def keep(self, host: EngineHost, settings: Restart, patience: float) -> None:
        """Make one, and another when it dies or is not at the gate after `patience` seconds."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(
                self._keep(host, settings, patience), name=f"{self._engine} standby"
            )

    async def arrives(self, host: EngineHost) -> None:
        """An engine on demand waits for the imports that its standby has begun: its own would take longer.
        Until it waits at the gate, or has ended."""
        while host.on_demand and self._start is not None and not self.is_waiting:
            self._changed.clear()
            await self._changed.wait()

    def take_over(self, queued: Start) -> Start | None:
        """The standby as the engine's next start, in the place of `queued`, if it waits at the gate. Its time
        counts from here on, and its log becomes the engine's."""
        waits = self.is_waiting
        start = self._release()
        if start is None or not waits:
            self._discard(start)
            return None
        assert start.process is not None
        self._log.replace_with(start.log)
        start.log, start.host, start.ticket = self._log, queued.host, queued.ticket
        start.spawned_at = time.monotonic()
        start.follower = Follower(self._log.path, start.log_from)
        self._journal.add_event(EventKind.STANDBY_TOOK_OVER, self._engine, pid=start.process.pid)
        return start

    def drop(self) -> None:
        """End it, and keep none."""
        self._discard(self._release())

    async def gone(self) -> None:
        """Wait until no process of a dropped one is left, but not for one that no signal ends."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=ENDING)

    def _on_change(self, state: StandbyState | None) -> None:
        self._changed.set()
        self._listener(state)

    def _release(self) -> Start | None:
        start, self._start = self._start, None
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
            self._on_change(None)
        return start

    def _discard(self, start: Start | None) -> None:
        if start is not None:
            task = asyncio.create_task(start.discard(), name=f"{self._engine} standby's end")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _keep(self, host: EngineHost, settings: Restart, patience: float) -> None:
        failures = 0
        while True:
            start = self._start = Start(host, self._log.beside("standby"))
            try:
                await start.spawn()
                self._on_change(StandbyState.IMPORTING)
                reason = await self._attend(start, patience)
                if start.waits_at_gate:
                    failures = 0
                delay = backoff(settings, failures)
                self._journal.add_event(EventKind.STANDBY_ENDED, self._engine, reason=reason, delay=delay)
            except MemoriaError as error:
                self._journal.add_event(EventKind.STANDBY_CANNOT_SPAWN, self._engine, str(error))
            except Exception:  # without its task there would be no standby any more
                logger.exception("%s: a bug in memoria while it kept a standby", self._engine)
            self._start = None
            self._on_change(None)
            self._discard(start)
            await asyncio.sleep(backoff(settings, failures))
            failures += 1

    async def _attend(self, start: Start, patience: float) -> str:
        """Watch it to its end; returns why it ended."""
        watching = asyncio.create_task(start.watch(lambda *_: None, LOOK))
        arriving = asyncio.create_task(start.reaches_gate())
        try:
            await asyncio.wait({watching, arriving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                if not arriving.done():
                    return f"not at the gate in {patience:g} s"
                if not self.is_waiting:
                    return "passed the gate by itself"
                self._journal.add_event(EventKind.STANDBY_WAITING, self._engine)
                self._on_change(StandbyState.WAITING)
            return str(await watching)
        finally:
            watching.cancel()
            arriving.cancel()
