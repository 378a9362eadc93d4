"""One engine's task: the only writer of its state.

Wishes (start, stop, restart) and facts (it exited, it answered) arrive in one inbox (`machine.py`); the table
in `lifecycle.py` gives the next state; here is what each state does. Everyone else reads `snapshot`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace

from memoria.config.model import Restart, Timeouts
from memoria.engine.diagnosis import Diagnosis
from memoria.engine.journal import Journal
from memoria.engine.judge import Judge
from memoria.engine.launch import launch, reaches_gate
from memoria.engine.lifecycle import Event, State
from memoria.engine.liveness import WATCHDOG
from memoria.engine.logfile import LogFile
from memoria.engine.machine import Machine
from memoria.engine.phases import Phase, StartFigures, read_line
from memoria.engine.process import EngineProcess
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.spare import Spare
from memoria.engine.start import Start
from memoria.engine.surroundings import Surroundings
from memoria.engine.traffic import Traffic
from memoria.engine.vigil import Vigil
from memoria.engine.watch import watch
from memoria.errors import MemoriaError, Problem

WITHOUT_PROCESS = frozenset({State.STOPPED, State.QUEUED, State.BACKOFF, State.FAILED})
AT_REST = frozenset({State.STOPPED, State.FAILED})
TAIL_LINES = 400  # read for a diagnosis
STACKS = 0.5  # seconds in which a hanging engine core may write where its threads are
LOOK_STARTING, LOOK_RUNNING = 0.1, 1.0  # seconds between two looks at the log


class EngineActor(Machine):
    """`on_change` is called with every new snapshot, from the event loop."""

    def __init__(
        self,
        name: str,
        around: Surroundings,
        log: LogFile,
        journal: Journal,
        *,
        timeouts: Timeouts,
        restart: Restart,
        on_change: Callable[[EngineSnapshot], None] = lambda _: None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        super().__init__(name)
        self.log, self.traffic = log, Traffic()
        self._around = self._next_around = around
        self._journal, self._on_change = journal, on_change
        self._timeouts, self._judge = timeouts, Judge(name, restart, jitter)

        self._watch: asyncio.Task[None] | None = None
        self._settled, self._at_rest = asyncio.Event(), asyncio.Event()
        self._settled.set()
        self._at_rest.set()

        self._wanted = False
        self._without_gate = False  # its vLLM does not load the passenger: it must queue before it is spawned
        self._delay = 0.0
        self._starts = 0

        self._spare = Spare(name, log, journal, lambda standby: self._publish(standby=standby))
        self._current = Start()
        self._vigil: Vigil | None = None
        self._suspicion = ""
        self._gently = False
        self.snapshot = EngineSnapshot(name, State.STOPPED, time.time())

    def __repr__(self) -> str:
        return f"<EngineActor {self.name} {self.snapshot.state}>"

    # ------------------------------------------------------------------ wishes, from any task of the loop

    def start(self) -> None:
        """Also gives an engine that had used up its attempts all of them again."""
        self._wanted = True
        self._judge.pardon()
        self._tell(Event.START)

    def stop(self, *, now: bool = False) -> None:
        self._wanted = False
        self._tell(Event.KILL if now else Event.STOP)

    def restart(self, *, now: bool = False) -> None:
        self._wanted = True
        self._judge.pardon()
        running = self.snapshot.state not in WITHOUT_PROCESS
        self._tell((Event.KILL if now else Event.STOP) if running else Event.START)

    def adopt(self, around: Surroundings, timeouts: Timeouts, restart: Restart) -> None:
        """Other settings: the waits from the next one on, the rest from the next start on. The start that is
        there keeps its surroundings, whose gate and memory it is bound to."""
        if around.spec("") != self._next_around.spec(""):
            self._spare.discard()  # of the old settings
        self._next_around = around
        self._timeouts, self._judge.policy = timeouts, restart
        if self._vigil is not None:
            self._vigil.adopt(timeouts.hang)
        if self.state is State.READY:
            self._mind_spare()

    @property
    def wanted(self) -> bool:
        """What a person wants: to run, or to rest."""
        return self._wanted

    def pids(self) -> list[int]:
        """The living processes of its tree, and of its standby's."""
        own = self._current.process.tree() if self._current.process is not None else []
        return own + self._spare.pids()

    @property
    def standby_start_id(self) -> str | None:
        return self._spare.start_id

    def last_log(self) -> list[str]:
        """The end of what the latest start wrote."""
        return self.log.tail(TAIL_LINES, self._current.log_from)

    async def at_rest(self) -> None:
        """Waits until the engine is stopped for good: no process, no memory."""
        await self._at_rest.wait()
        await self._spare.gone()

    async def settled(self) -> None:
        """Like `at_rest`, but for memory that is held: no signal can end what is left, and whoever stops the
        daemon must not wait for a driver."""
        await self._settled.wait()
        await self._spare.gone()

    # ------------------------------------------------------------------ as the machine asks

    @property
    def state(self) -> State:
        return self.snapshot.state

    async def run(self) -> None:
        """For ever; cancel it once `settled`."""
        try:
            await super().run()
        finally:
            self._spare.discard()
            if self._watch is not None:
                self._watch.cancel()

    def _still_counts(self, sender: object) -> bool:
        return sender is self._current.process

    def _failed(self, error: Exception) -> None:
        self._current.trouble = f"internal error: {error!r}"

    def _enter(self, state: State, event: Event) -> None:
        if event in (Event.STOP, Event.KILL, Event.UNGUARDED):
            self._current.asked = True
        self._gently = event is Event.DRAINED
        self._around.set_releasing(state in (State.RELEASING, State.HELD))
        now = time.time()
        retry_at = now + self._delay if state is State.BACKOFF else None
        self._publish(state=state, since=now, detail=self._why(state, event), retry_at=retry_at)
        self._journal.add(self.name, state.value, self.snapshot.detail or event.value)
        if state in WITHOUT_PROCESS:
            self._forget_start()
        if state is State.READY:
            seconds = self._current.seconds_to_ready
            self._publish(phase=None, percent=None, diagnosis=None, start_seconds=seconds)
        if state in AT_REST or not self._wanted:
            self._spare.discard()
        _set(self._at_rest, state in AT_REST)
        _set(self._settled, state in AT_REST or state is State.HELD)

    # ------------------------------------------------------------------ one coroutine per state

    async def _while_stopped(self) -> None:
        return None

    _while_failed = _while_stopped

    async def _while_queued(self) -> Event:
        self._around = self._next_around
        self._current.ticket = self._around.ticket()
        if self._without_gate:
            await self._pass_gate()
        return Event.CLEARED

    async def _while_starting(self) -> Event:
        try:
            self._spawn()
        except MemoriaError as error:
            self._current.trouble = error.problems[0].what
            return Event.UNSPAWNABLE
        except OSError as error:
            self._current.trouble = f"cannot start {error.filename or 'the engine'}: {error.strerror}"
            return Event.UNSPAWNABLE
        try:
            if not self._without_gate and not await self._held_at_gate():
                self._without_gate = True
                self._journal.add(self.name, "no passenger", "its vLLM does not load memoria's plugin")
                return Event.UNGUARDED
            assert self.snapshot.address is not None
            async with asyncio.timeout(self._timeouts.start):
                await self._around.until_answering(self.snapshot.address)
        except TimeoutError:
            phase = self.snapshot.phase or Phase.SPAWNED
            self._current.trouble = f"not ready in {self._timeouts.start:g} s ({phase})"
            return Event.OVERDUE
        self.pids()  # all of them are known from now on: the memory of each must come back
        self._current.ready_at = time.monotonic()
        self._judge.saw_ready()
        if self._current.ticket is not None:
            self._current.ticket.leave()
        return Event.ANSWERED

    async def _while_ready(self) -> Event:
        self._mind_spare()
        if self._vigil is None:
            assert self.snapshot.address is not None
            self._vigil = Vigil(self._around, self.snapshot.address, self.traffic, self._timeouts.hang)
        self._suspicion = await self._vigil.until_silent()
        return Event.SILENT

    async def _while_suspect(self) -> Event:
        assert self._vigil is not None
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
            self._journal.add(self.name, "drain timed out", f"requests cut: {self.traffic.in_flight}")
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
                self._journal.add(self.name, "killed", f"ignored SIGTERM for {self._timeouts.stop:g} s")
        self._current.process.kill()
        return None  # the watcher reports the exit

    async def _while_releasing(self) -> Event:
        try:
            async with asyncio.timeout(self._timeouts.release):
                await self._until_released()
        except TimeoutError:
            return Event.STUCK
        return self._sentence()

    async def _while_held(self) -> Event:
        await self._until_released()
        return self._sentence()

    async def _while_backoff(self) -> Event:
        await asyncio.sleep(self._delay)
        return Event.DUE

    # ------------------------------------------------------------------ starting

    def _spawn(self) -> None:
        """Raises `MemoriaError` or `OSError`."""
        if (spare := self._spare.take(self._current.ticket)) is not None:
            self._current = spare
        else:
            launch(self._current, self._around, self.log)
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
            self._spare.keep(self._next_around, self._judge.policy)

    async def _held_at_gate(self) -> bool:
        """Waits for the engine core at the gate and lets it through in its turn.
        False: the core went on by itself, no passenger holds it. Raises `TimeoutError`."""
        async with asyncio.timeout(self._timeouts.start):
            if not await reaches_gate(self._current):
                return False
        self._publish(phase=Phase.AT_GATE, percent=None)
        await self._pass_gate()
        assert self._current.boarding is not None
        self._current.let_through = True
        self._current.boarding.let_through()
        return True

    async def _pass_gate(self) -> None:
        assert self._current.ticket is not None
        await self._current.ticket.enter(self._around.check_memory, self._blocked)
        self._publish(detail="")

    def _blocked(self, problem: Problem) -> None:
        if self.snapshot.detail != problem.what:
            advice = "; ".join((*problem.where, problem.hint or ""))
            self._publish(detail=problem.what, diagnosis=Diagnosis(problem.what, advice, "yes"))
            self._journal.add(self.name, "waits for memory", "; ".join((problem.what, *problem.where)))

    # ------------------------------------------------------------------ watching

    async def _watch_process(self, start: Start) -> None:
        assert start.process is not None
        assert start.follower is not None
        start.exit = await watch(start.process, self.log, start.follower, self._read_line, self._pause)
        start.exited_at = time.monotonic()
        self._tell(Event.EXITED, start.process)

    def _pause(self) -> float:
        return LOOK_STARTING if self.snapshot.state is State.STARTING else LOOK_RUNNING

    def _read_line(self, line: str) -> None:
        if self._vigil is not None and WATCHDOG.search(line):
            self._vigil.alarm.set()
        if (seen := read_line(line)) is None:
            return
        self._publish(figures=self.snapshot.figures.with_observation(seen))
        if self.snapshot.state is State.STARTING:
            self._publish(phase=seen.phase, percent=seen.percent)
        if seen.phase is Phase.ENGINE and not self._current.let_through:
            self._current.slipped_through.set()

    # ------------------------------------------------------------------ ending

    async def _until_released(self) -> None:
        if (process := self._current.process) is not None:
            await self._around.until_released(lambda: self._clear(process), process.known)

    def _clear(self, process: EngineProcess) -> list[int]:
        """Kills and reaps what is left of this start; returns the processes that are not gone yet."""
        if stragglers := process.clear():
            self._journal.add(self.name, "killed what outlived its leader", f"pids {stragglers}")
        return process.tree()

    def _sentence(self) -> Event:
        """What follows a start that has ended and given its memory back."""
        if not self._wanted:
            return Event.REST
        if self._current.asked:
            return Event.REQUEUE
        sentence = self._judge.sentence(self._current, self.last_log)
        self._current.trouble, self._delay = sentence.reason, sentence.delay
        self._publish(diagnosis=sentence.diagnosis)
        if sentence.event is Event.RETRY and sentence.first and self._spare.is_waiting:
            return Event.REQUEUE  # no delay for the first crash: what it would spare is done already
        return sentence.event

    def _why(self, state: State, event: Event) -> str:
        match state:
            case State.RELEASING if event is Event.EXITED and not self._current.asked:
                return str(self._current.exit) if self._current.exit else ""
            case State.SUSPECT:
                return self._suspicion
            case State.STOPPING | State.RELEASING | State.FAILED | State.BACKOFF:
                return self._current.trouble or ""
            case State.HELD:
                return "its memory has not come back; nothing starts on this device until it does"
            case _:
                return ""

    def _forget_start(self) -> None:
        if self._current.ticket is not None:
            self._current.ticket.leave()
        if self._current.id is not None:
            self._around.forget(self._current.id)
        self._current, self._vigil = Start(), None
        self._publish(phase=None, percent=None, pid=None, start_id=None, address=None)

    def _publish(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]
        self._on_change(self.snapshot)


def _set(event: asyncio.Event, on: bool) -> None:
    if on:
        event.set()
    else:
        event.clear()
