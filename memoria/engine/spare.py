"""A standby: a second process of an engine, all imported, that waits at the gate and holds no device memory.

It costs the host memory of the imports. When the engine dies, the spare is taken for the next start, which
then takes only what lies behind the gate; another one is made once that is ready. Only an engine whose
passenger has held it at the gate may have one: a core that went on by itself would take device memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum

from memoria.config.model import Restart
from memoria.engine.journal import Journal
from memoria.engine.launch import launch, reaches_gate
from memoria.engine.logfile import LogFile
from memoria.engine.start import Start
from memoria.engine.surroundings import Surroundings, Ticket
from memoria.errors import MemoriaError


class Standby(StrEnum):
    IMPORTING = "importing"
    WAITING = "waiting"


class Spare:
    """Of one engine. `on_change` is told what there is: None for no spare."""

    def __init__(
        self, engine: str, log: LogFile, journal: Journal, on_change: Callable[[Standby | None], None]
    ) -> None:
        self._engine, self._log, self._journal, self._on_change = engine, log, journal, on_change
        self._start: Start | None = None
        self._around: Surroundings | None = None  # of that start
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def start_id(self) -> str | None:
        return self._start.id if self._start is not None else None

    def pids(self) -> list[int]:
        process = self._start.process if self._start is not None else None
        return process.tree() if process is not None else []

    @property
    def is_waiting(self) -> bool:
        boarding = self._start.boarding if self._start is not None else None
        return boarding is not None and boarding.at_gate.is_set()

    def keep(self, around: Surroundings, policy: Restart) -> None:
        """Sees to it that there is one, now and when it dies."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(around, policy), name=f"{self._engine} standby")

    def take(self, ticket: Ticket | None) -> Start | None:
        """The spare, for a start of the engine: at the gate, or still importing. It is not kept any more. Its
        time and its log count from here on."""
        start = self._let_go()
        if start is None or start.process is None or not start.process.is_running:
            self._end(start)
            return None
        start.ticket, start.spawned_at = ticket, time.monotonic()
        start.log_from, start.follower = self._log.size(), self._log.follow()
        self._journal.add(self._engine, "standby takes over", f"pid {start.process.pid}")
        return start

    def discard(self) -> None:
        self._end(self._let_go())

    async def gone(self) -> None:
        """Waits until no process of a discarded spare is left."""
        while self._ending:
            await asyncio.wait(self._ending)

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

    async def _keep(self, around: Surroundings, policy: Restart) -> None:
        delay, self._around = policy.initial, around
        while True:
            start = self._start = Start()
            try:
                launch(start, around, self._log)
                self._on_change(Standby.IMPORTING)
                if await self._boards(start):
                    delay = policy.initial
                    self._journal.add(self._engine, "standby waits at the gate")
                    self._on_change(Standby.WAITING)
                assert start.process is not None
                status = await start.process.exited()
                self._journal.add(self._engine, "standby ended", f"{status}; another one in {delay:g} s")
            except (MemoriaError, OSError) as error:
                self._journal.add(self._engine, "standby could not be spawned", str(error))
            self._start = None
            self._on_change(None)
            self._end(start)
            await asyncio.sleep(delay)
            delay = min(policy.cap, 2 * delay)

    async def _boards(self, start: Start) -> bool:
        assert start.process is not None
        boarded = asyncio.ensure_future(reaches_gate(start))
        ended = asyncio.ensure_future(start.process.exited())
        try:
            await asyncio.wait({boarded, ended}, return_when=asyncio.FIRST_COMPLETED)
            return boarded.done()
        finally:
            boarded.cancel()
            ended.cancel()


async def _clear(start: Start, around: Surroundings) -> None:
    if (process := start.process) is not None:
        process.kill()
        await process.exited()
        process.clear()
        while process.tree():  # killed, and not our children
            await asyncio.sleep(0.05)
            process.clear()
    if start.id is not None:
        around.forget(start.id)
