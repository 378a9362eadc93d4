"""What an engine does in each of its states: one coroutine per state, that ends in the next event.

The table in `lifecycle.py` says what follows, the actor (`actor.py`) who may ask for what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from memoria.aio import in_daemon_thread
from memoria.config.model import Restart, Timeouts
from memoria.engine.events import EventKind, Journal
from memoria.engine.hang_detector import HangWatch
from memoria.engine.host import EngineHost
from memoria.engine.launch import launch, reaches_gate
from memoria.engine.lifecycle import Event, State
from memoria.engine.log.file import LogFile
from memoria.engine.machine import Machine
from memoria.engine.process.shared_memory import segments
from memoria.engine.process.watch import watch
from memoria.engine.restart_policy import RestartPolicy
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.standby import Standby
from memoria.engine.start import Start
from memoria.engine.traffic import Traffic
from memoria.errors import MemoriaError, Problem
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.log_lines import WATCHDOG, Phase, StartFigures, read_line

logger = logging.getLogger(__name__)

STACKS = 0.5  # seconds in which a hanging engine core may write where its threads are
LOOK_STARTING, LOOK_RUNNING = 0.1, 1.0  # seconds between two looks at the log
CORE_GRACE = 10.0  # seconds for a leader to end after its core; vLLM's takes 4 at most
CORE_GONE = "its engine core is gone"
RETRY_HELD = 5.0  # seconds until memory that is held is looked at again, after a look that failed
LONGEST_LOOK = 5.0  # seconds at what the processes have mapped
TAIL_LINES = 400  # read for a diagnosis


class EngineStates(Machine):
    """`on_change` is called with every new snapshot, from the event loop. `jitter` is uniform in [-1, 1]."""

    def __init__(
        self,
        name: str,
        around: EngineHost,
        log: LogFile,
        journal: Journal,
        *,
        timeouts: Timeouts,
        restart: Restart,
        on_change: Callable[[EngineSnapshot], None],
        jitter: Callable[[], float],
    ) -> None:
        super().__init__(name)
        self.log, self.traffic = log, Traffic()
        self.snapshot = EngineSnapshot(name, State.STOPPED, time.time())
        self._around = self._next_around = around
        self._journal, self._on_change = journal, on_change
        self._timeouts, self._judge = timeouts, RestartPolicy(name, restart, jitter)

        self._wanted = False
        self._without_gate = False  # its vLLM does not load the passenger: it must queue before it is spawned
        self._gently = False  # it is asked to end before it is killed
        self._delay = 0.0
        self._starts = 0
        self._suspicion = ""

        self._spare = Standby(name, log, journal, lambda standby: self._publish(standby=standby))
        self._current = Start()
        self._watch: asyncio.Task[None] | None = None
        self._vigil: HangWatch | None = None

    @property
    def state(self) -> State:
        return self.snapshot.state

    def last_log(self) -> list[str]:
        """The end of what the latest start wrote."""
        return self.log.tail(TAIL_LINES, self._current.log_from)

    def _still_counts(self, sender: object) -> bool:
        return sender is self._current.process

    def _failed(self, error: Exception) -> None:
        self._current.trouble = f"internal error: {error!r}"

    def _publish(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]
        self._on_change(self.snapshot)

    # ------------------------------------------------------------------ one coroutine per state

    async def _while_stopped(self) -> None:
        return None

    _while_failed = _while_stopped

    async def _while_queued(self) -> Event:
        self._around = self._next_around
        self._current.ticket = self._around.ticket()
        if self._without_gate:
            await self._pass_gate()
            self._current.behind_gate = True
        return Event.CLEARED

    async def _while_starting(self) -> Event:
        try:
            await self._spawn()
        except MemoriaError as error:
            problem = error.problems[0]
            self._current.trouble = problem.what
            if problem.where:  # who is in the way: for the log, not for clients
                told = "; ".join((problem.what, *problem.where))
                self._journal.add_event(EventKind.CANNOT_SPAWN, self.name, told)
            return Event.UNSPAWNABLE
        except OSError as error:
            self._current.trouble = f"cannot start {error.filename or 'the engine'}: {error.strerror}"
            return Event.UNSPAWNABLE
        try:
            if not self._without_gate and not await self._held_at_gate():
                self._without_gate = self._current.behind_gate = True
                self._journal.add_event(EventKind.NO_PASSENGER, self.name)
                return Event.UNGUARDED
            assert self._current.address is not None
            assert self._current.id is not None
            async with asyncio.timeout(self._timeouts.start):
                await self._around.until_answering(self._current.address, self._current.id)
        except TimeoutError:
            phase = self.snapshot.phase or Phase.SPAWNED
            self._current.trouble = f"not ready in {self._timeouts.start:g} s ({phase})"
            return Event.OVERDUE
        return await self._accept()

    async def _while_ready(self) -> Event:
        self._mind_spare()
        if self._vigil is None:
            assert self.snapshot.address is not None
            self._vigil = HangWatch(self._around, self.snapshot.address, self.traffic, self._timeouts.hang)
            if self._current.core_lost:
                self._vigil.alert(CORE_GONE)
        self._suspicion = await self._vigil.until_silent()
        return Event.SILENT

    async def _while_suspect(self) -> Event:
        assert self._vigil is not None
        if self._current.core_lost:  # its leader tells those whose requests it has, and ends by itself
            await asyncio.sleep(CORE_GRACE)
        if not await self._vigil.is_hung():
            return Event.MOVED
        self._current.trouble = f"hung: {self._suspicion}"
        if self._current.boarding is not None:
            self._current.boarding.ask_for_stacks()
            await asyncio.sleep(STACKS)
        return Event.HUNG

    async def _while_draining(self) -> Event:
        try:
            async with asyncio.timeout(self._timeouts.drain):
                await self.traffic.idle()
        except TimeoutError:
            self._journal.add_event(EventKind.DRAIN_TIMED_OUT, self.name, in_flight=self.traffic.in_flight)
        await self._around.until_alone(self._on_neighbour)
        self._tell_gate(releasing=True)  # before anybody else passes
        return Event.DRAINED

    async def _while_stopping(self) -> Event | None:
        """vLLM swallows a SIGTERM while it initialises: one that was ready is asked, any other is killed."""
        if self._current.process is None:
            return Event.EXITED
        if self._gently:
            self._current.process.terminate()
            try:
                async with asyncio.timeout(self._timeouts.stop):
                    await self._current.process.exited()
            except TimeoutError:
                self._journal.add_event(EventKind.KILLED, self.name, seconds=self._timeouts.stop)
        self._current.process.kill()
        try:
            async with asyncio.timeout(self._timeouts.release):
                await self._current.process.exited()
        except TimeoutError:
            return Event.STUCK  # in the kernel: no signal ends it
        return None  # the watcher reports the exit

    async def _while_releasing(self) -> Event:
        try:
            async with asyncio.timeout(self._timeouts.release):
                await self._until_released()
        except TimeoutError:
            return Event.STUCK
        return self._sentence()

    async def _while_held(self) -> Event:
        before = self.snapshot.diagnosis
        if (process := self._current.process) is not None and (held := self._around.holders(process.known)):
            what = "; ".join(held)
            self._journal.add_event(EventKind.MEMORY_HELD, self.name, what)
            self._publish(diagnosis=Diagnosis(self.snapshot.detail, what, "yes"))
        while True:
            try:
                await self._until_released()
                break
            except Exception:  # whatever it is: as long as the memory is not back, nobody may pass
                logger.exception("%s: a bug in memoria while %s", self.name, self.state)
                await asyncio.sleep(RETRY_HELD)
        self._publish(diagnosis=before)
        return self._sentence()

    async def _while_backoff(self) -> Event:
        await asyncio.sleep(self._delay)
        return Event.DUE

    # ------------------------------------------------------------------ starting

    async def _spawn(self) -> None:
        """Raises `MemoriaError` or `OSError`."""
        if (spare := self._spare.take(self._current.ticket)) is not None:
            self._current = spare
        else:
            await launch(self._current, self._around, self.log)
        process = self._current.process
        assert process is not None
        self._watch = asyncio.create_task(self._watch_process(self._current), name=f"{self.name} log")
        self._publish(
            phase=Phase.SPAWNED,
            percent=None,
            pid=process.pid,
            start_id=self._current.id,
            address=self._current.address,
            figures=StartFigures(),
            start_seconds=None,
            restarts=self.snapshot.restarts + (self._starts > 0),
        )
        self._starts += 1

    def _mind_spare(self) -> None:
        if not self._next_around.standby:
            self._spare.discard()
        elif self._current.let_through:
            self._spare.keep(self._next_around, self._judge.policy, self._timeouts.start)

    async def _held_at_gate(self) -> bool:
        """Waits for the engine core at the gate and lets it through in its turn.
        False: the core went on by itself, no passenger holds it. Raises `TimeoutError`."""
        start = self._current
        async with asyncio.timeout(self._timeouts.start):
            if not await reaches_gate(start):
                return False
        self._publish(phase=Phase.AT_GATE, percent=None)
        await self._pass_gate()
        assert start.boarding is not None
        start.let_through = start.behind_gate = True
        start.boarding.on_lost = lambda: self._on_core_lost(start)
        start.boarding.let_through()
        return True

    async def _pass_gate(self) -> None:
        assert self._current.ticket is not None
        before = self.snapshot.diagnosis
        await self._current.ticket.enter(self._around.check_memory, self._on_blocked)
        self._publish(detail="", diagnosis=before)

    async def _accept(self) -> Event:
        """It has answered. One whose neighbour's memory moved while it measured may have taken that, too."""
        start = self._current
        assert start.process is not None
        with contextlib.suppress(OSError):  # also when that takes too long
            known = await start.process.tree()  # from now on: the memory of each must come back
            async with asyncio.timeout(LONGEST_LOOK):
                start.segments = await in_daemon_thread(lambda: segments(known))
        spoiled = start.ticket is not None and start.ticket.spoiled
        if spoiled and (problem := await self._around.check_held(start.process.known)) is not None:
            start.trouble = problem.what
            self._journal.add_event(EventKind.STARTS_AGAIN, self.name, problem.what)
            return Event.OVERSIZED
        start.ready_at = time.monotonic()
        self._judge.saw_ready()
        if start.ticket is not None:
            start.ticket.leave()
        return Event.ANSWERED

    # ------------------------------------------------------------------ watching

    async def _watch_process(self, start: Start) -> None:
        assert start.process is not None
        assert start.follower is not None
        start.exit = await watch(start.process, self.log, start.follower, self._read_line, self._pause)
        start.exited_at = time.monotonic()
        self._tell(Event.EXITED, start.process)

    def _pause(self) -> float:
        return LOOK_STARTING if self.state is State.STARTING else LOOK_RUNNING

    def _read_line(self, line: str) -> None:
        if self._vigil is not None and WATCHDOG.search(line):
            self._vigil.alert("vLLM's watchdog has fired")
        if (seen := read_line(line)) is None:
            return
        self._publish(figures=self.snapshot.figures.with_observation(seen))
        at_gate = self.snapshot.phase is Phase.AT_GATE and not self._current.let_through
        if self.state is State.STARTING and not at_gate:
            self._publish(phase=seen.phase, percent=seen.percent)
        if seen.phase is Phase.ENGINE and not self._current.let_through:
            self._current.slipped_through.set()

    def _on_blocked(self, problem: Problem) -> None:
        if self.snapshot.detail != problem.what:
            advice = "; ".join((*problem.where, problem.hint or ""))
            self._publish(detail=problem.what, diagnosis=Diagnosis(problem.what, advice, "yes"))
            self._journal.add_event(
                EventKind.WAITS_FOR_MEMORY, self.name, "; ".join((problem.what, *problem.where))
            )

    def _on_neighbour(self, neighbour: str) -> None:
        self._publish(detail=f"waits until {neighbour} has started, which must not see memory move")
        self._journal.add_event(EventKind.WAITS_FOR_NEIGHBOUR, self.name, f"{neighbour} is behind the gate")

    def _on_core_lost(self, start: Start) -> None:
        """Its memory is on its way back, though its leader has not ended yet. What that is given meanwhile it
        can only refuse."""
        if start is self._current:
            start.core_lost = True
            self._tell_gate(releasing=True)
            if self._vigil is not None:
                self._vigil.alert(CORE_GONE)

    # ------------------------------------------------------------------ ending

    def _tell_gate(self, *, releasing: bool) -> None:
        """An engine that was never behind the gate holds nothing that could come back."""
        self._around.set_releasing(self._current.id or "", releasing and self._current.behind_gate)

    async def _until_released(self) -> None:
        if (process := self._current.process) is not None:
            await self._around.until_released(self._clear, process.known)

    async def _clear(self) -> set[int]:
        """Kills and reaps what is left of this start; returns the processes that were not gone yet. Raises
        `OSError` when nobody knows."""
        assert self._current.process is not None
        cleared = await self._current.process.clear()
        if cleared.outlived:
            pids = str(sorted(cleared.outlived))
            self._journal.add_event(EventKind.ORPHANS_KILLED, self.name, pids=pids)
        return cleared.left

    def _sentence(self) -> Event:
        """What follows a start that has ended and given its memory back."""
        if not self._wanted:
            return Event.REST
        if self._current.asked:
            return Event.REQUEUE
        sentence = self._judge.sentence(self._current, self.last_log, self._around.situation, self.snapshot)
        self._current.trouble, self._delay = sentence.reason, sentence.delay
        self._publish(diagnosis=sentence.diagnosis)
        if sentence.event is Event.RETRY and sentence.first and self._spare.is_waiting:
            return Event.REQUEUE  # no delay for the first crash: what it would spare is done already
        return sentence.event
