"""A standby: a second process of an engine, all imported, that waits at the gate and holds no device memory.

It costs the host memory of the imports. When the engine dies, the spare is taken for the next start, which
then takes only what lies behind the gate; another one is made once that is ready. Only an engine whose
passenger has held it at the gate may have one: a core that went on by itself would take device memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from enum import StrEnum

from memoria.config.model import Restart
from memoria.engine.events import EventKind, Journal
from memoria.engine.host import EngineHost, Ticket
from memoria.engine.launch import launch, reaches_gate
from memoria.engine.log.file import LogFile
from memoria.engine.log.reader import Follower
from memoria.engine.process.process import EngineProcess
from memoria.engine.process.watch import watch
from memoria.engine.start import Start
from memoria.errors import MemoriaError
from memoria.vllm.log_lines import Phase, read_line

logger = logging.getLogger(__name__)

ENDING = 20.0  # seconds in which a killed process ends, unless it is stuck in the kernel
AGAIN = 0.1  # seconds until its last processes are looked for again
LOOK = 1.0  # seconds between two looks at its log


class StandbyState(StrEnum):
    IMPORTING = "importing"
    WAITING = "waiting"


class Standby:
    """Of one engine. It writes to a file beside the engine's `log`: what it says is not of the engine that
    runs. `on_change` is told what there is: None for no spare."""

    def __init__(
        self, engine: str, log: LogFile, journal: Journal, on_change: Callable[[StandbyState | None], None]
    ) -> None:
        self._engine, self._log, self._journal, self._on_change = engine, log, journal, on_change
        self._start: Start | None = None
        self._around: EngineHost | None = None  # of that start
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def start_id(self) -> str | None:
        return self._start.id if self._start is not None else None

    @property
    def _own_log(self) -> LogFile:
        return self._log.beside("standby")

    @property
    def is_waiting(self) -> bool:
        """Only then it may be taken: nobody knows whether one that imports ever gets there."""
        start = self._start
        if start is None or start.process is None or start.boarding is None:
            return False
        return start.process.is_running and start.boarding.at_gate.is_set()

    def keep(self, around: EngineHost, policy: Restart, patience: float) -> None:
        """Sees to it that there is one, also when it dies, or is not at the gate after `patience` seconds."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(
                self._keep(around, policy, patience), name=f"{self._engine} standby"
            )

    def take(self, ticket: Ticket | None) -> Start | None:
        """The spare, if it waits at the gate, for a start of the engine; it is not kept any more. Its time
        counts from here on, and its log becomes the engine's."""
        waits = self.is_waiting
        start = self._let_go()
        if start is None or not waits:
            self._end(start)
            return None
        assert start.process is not None
        self._log.replace_with(self._own_log)
        start.ticket, start.spawned_at = ticket, time.monotonic()
        start.follower = Follower(self._log.path, start.log_from)
        self._journal.add_event(EventKind.STANDBY_TOOK_OVER, self._engine, pid=start.process.pid)
        return start

    def discard(self) -> None:
        self._end(self._let_go())

    async def gone(self) -> None:
        """Waits until no process of a discarded spare is left, but not for one that no signal ends."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=ENDING)

    def _let_go(self) -> Start | None:
        start, self._start = self._start, None
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
            self._on_change(None)
        return start

    def _end(self, start: Start | None) -> None:
        """Kills it; its last processes are reaped beside."""
        if start is not None and self._around is not None:
            task = asyncio.create_task(_clear(start, self._around), name=f"{self._engine} standby's end")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _keep(self, around: EngineHost, policy: Restart, patience: float) -> None:
        delay, self._around = policy.initial, around
        while True:
            start = self._start = Start()
            try:
                await launch(start, around, self._own_log)
                self._on_change(StandbyState.IMPORTING)
                what = await self._attend(start, patience)
                if start.boarding is not None and start.boarding.at_gate.is_set():
                    delay = policy.initial
                self._journal.add_event(EventKind.STANDBY_ENDED, self._engine, reason=what, delay=delay)
            except (MemoriaError, OSError) as error:
                self._journal.add_event(EventKind.STANDBY_CANNOT_SPAWN, self._engine, str(error))
            except Exception:  # else there would be none any more, and nobody would know
                logger.exception("%s: a bug in memoria while it kept a standby", self._engine)
            self._start = None
            self._on_change(None)
            self._end(start)
            await asyncio.sleep(delay)
            delay = min(policy.cap, 2 * delay)

    async def _attend(self, start: Start, patience: float) -> str:
        """Watches it to its end; returns what that was."""
        assert start.process is not None
        assert start.follower is not None

        def read(line: str) -> None:
            if (seen := read_line(line)) is not None and seen.phase is Phase.ENGINE:
                start.slipped_through.set()

        watching = asyncio.create_task(
            watch(start.process, self._own_log, start.follower, read, lambda: LOOK)
        )
        boarding = asyncio.create_task(reaches_gate(start))
        try:
            await asyncio.wait({watching, boarding}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                if not boarding.done():
                    return f"not at the gate in {patience:g} s"
                if not self.is_waiting:
                    return "passed the gate by itself"
                self._journal.add_event(EventKind.STANDBY_WAITING, self._engine)
                self._on_change(StandbyState.WAITING)
            return str(await watching)
        finally:
            watching.cancel()
            boarding.cancel()


async def _clear(start: Start, around: EngineHost) -> None:
    if (process := start.process) is not None:
        process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING):
                await process.exited()
        while await _lives(process):  # noqa: ASYNC110 - killed, and not our children: only looking tells
            await asyncio.sleep(AGAIN)
    if start.id is not None:
        around.forget(start.id)


async def _lives(process: EngineProcess) -> bool:
    try:
        return bool((await process.clear()).left)
    except OSError as error:
        logger.warning("a standby's processes are not known: %s", error)
        return True
