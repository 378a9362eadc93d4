"""One engine's task: the only writer of its state.

Requests (start, stop, restart, other settings) and facts (it exited, it answered) arrive in one inbox. The
table in `lifecycle.py` gives the next state, `_work` the coroutine that does what the state says and ends in
the next event. Everyone else reads `snapshot`. One task, so that no two of an engine's steps ever interleave.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Literal

from memoria.config.model import Restart, Timeouts
from memoria.engine.events import EventKind, Journal
from memoria.engine.host import EngineHost
from memoria.engine.lifecycle import FACTS, Event, RestartPolicy, State, accepts, next_state, resolve_request
from memoria.engine.log import LogFile
from memoria.engine.sleep import Sleeper
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.standby import Standby
from memoria.engine.start import Pauses, Start
from memoria.engine.traffic import Traffic
from memoria.errors import MemoriaError, Problem
from memoria.text import size_text
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.log_lines import WATCHDOG, Observation, Phase, StartFigures

logger = logging.getLogger(__name__)


class EngineActor:
    """Its requests may be made from any task of the loop. `on_change` is called with every new snapshot, from
    the loop, before the new state's work begins. `jitter` is uniform in [-1, 1]."""

    def __init__(
        self,
        name: str,
        host: EngineHost,
        log: LogFile,
        journal: Journal,
        *,
        timeouts: Timeouts,
        restart: Restart,
        on_change: Callable[[EngineSnapshot], None] = lambda _: None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
        pauses: Pauses | None = None,
    ) -> None:
        self.name, self.log, self.traffic = name, log, Traffic()
        self.snapshot = EngineSnapshot(name, State.STOPPED, time.time(), on_demand=host.on_demand)
        self._next_host = host  # of the next start; the one that is there keeps its own
        self._journal, self._on_change, self._pauses = journal, on_change, pauses or Pauses()
        self._timeouts, self._policy = timeouts, RestartPolicy(restart, jitter)

        self._inbox: asyncio.Queue[tuple[Event, object]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None  # the state's work
        self._turn: asyncio.Task[None] | None = None  # until a request that serves on meanwhile is made
        self._log_watch: asyncio.Task[None] | None = None
        self._settled, self._at_rest = asyncio.Event(), asyncio.Event()
        self._settled.set()
        self._at_rest.set()
        self.wanted = False  # to run, as last requested
        self._fetched_by: EngineHost | None = None
        self._without_gate = False  # its vLLM loads no passenger: it must queue before it is spawned
        self._cause: Event | None = None  # of the present state
        self._delay, self._is_restart = 0.0, False  # of the next start
        self._start = Start(host, log)
        self._sleeper = Sleeper(name, journal, self._publish)
        self._standby = Standby(name, log, journal, lambda standby: self._publish(standby=standby))

        self._work: dict[State, Callable[[], Awaitable[Event | None]]] = {
            State.STOPPED: self._rest,
            State.QUEUED: self._queue,
            State.FETCHING: self._fetch,
            State.STARTING: self._get_ready,
            State.READY: self._watch_for_hang,
            State.SUSPECT: self._look_again,
            State.DRAINING: self._drain,
            State.STOPPING: self._end_leader,
            State.RELEASING: self._release,
            State.HELD: self._wait_for_memory,
            State.BACKOFF: self._back_off,
            State.FAILED: self._rest,
            State.YIELDING: self._make_room,
            State.DORMANT: self._rest,
            State.DOZING: lambda: self._sleeper.fall_asleep(self._start, self._timeouts),
            State.ASLEEP: lambda: self._sleeper.stay_asleep(self._start, self._pauses),
            State.WAKING: lambda: self._sleeper.wake(self._start, self._timeouts, self),
        }

    def __repr__(self) -> str:
        return f"<EngineActor {self.name} {self.state}>"

    # ------------------------------------------------------------------ requests

    def start(self) -> None:
        """Also gives an engine that had used up its attempts all of them again. Calls off a stop that still
        waits for its turn."""
        if self._turn is not None and not self.wanted:
            self._end_turn()
            self._publish(detail="")
            self._journal.add_event(EventKind.STOP_CALLED_OFF, self.name)
        self.wanted = True
        self._policy.pardon()
        self._delay = 0.0
        self._send(Event.START)

    def stop(self, *, now: bool = False, in_turn: bool = False) -> None:
        """`in_turn`: it serves on while a neighbour is behind the gate, which must not see memory go."""
        self.wanted = False
        send = self._send_in_turn if in_turn and not now else self._send
        send(Event.KILL if now else Event.STOP)

    def restart(self, *, now: bool = False) -> None:
        """In its turn, unless `now`: it serves on until it could also come back."""
        self.wanted = True
        self._policy.pardon()
        send = self._send if now else self._send_in_turn
        send(Event.RESTART_NOW if now else Event.RESTART)

    def schedule(self, step: Literal[Event.WAKE, Event.YIELD, Event.CALL_OFF, Event.STEP_BACK]) -> None:
        """Of an engine on demand. No effect in a state that has no such step."""
        self._send(step)

    def adopt(self, host: EngineHost, timeouts: Timeouts, restart: Restart) -> None:
        """Other settings: timeouts from the next wait on, the rest from the next start on. The start that is
        there keeps its host, to whose gate and memory it is bound."""
        if host.spec("") != self._next_host.spec(""):
            self._standby.drop()  # it has the old settings
            self._without_gate = False  # perhaps another vLLM
        self._next_host = host
        self._publish(on_demand=host.on_demand)
        if FACTS[self.state].is_away and not host.on_demand:
            self._send(Event.START)
        self._timeouts, self._policy.settings = timeouts, restart
        self._start.set_patience(timeouts.hang)
        self._send(Event.ADOPT)
        if self.state is State.READY:
            self._keep_standby()

    def _send_in_turn(self, request: Event) -> None:
        if self.state is not State.READY:
            self._send(request)
        elif self._turn is None:  # else one waits already, and `wanted` decides what it becomes
            self._turn = asyncio.create_task(self._until_turn(request), name=f"{self.name} {request}")

    async def _until_turn(self, request: Event) -> None:
        host = self._start.host
        if request is Event.RESTART:
            await host.until_calm(self._on_turn_waits)
        else:
            await host.until_alone(lambda neighbour: self._on_turn_waits(f"{neighbour} is behind the gate"))
        self._turn = None
        self._send(request)

    def _on_turn_waits(self, reason: str) -> None:
        self._publish(detail=f"{'restarts' if self.wanted else 'stops'} in its turn: {reason}")
        self._journal.add_event(EventKind.WAITS_FOR_NEIGHBOUR, self.name, reason)

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    # ------------------------------------------------------------------ for everyone else

    @property
    def state(self) -> State:
        return self.snapshot.state

    @property
    def may_go(self) -> bool:
        """Whether it could be restarted now: no neighbour would see its memory go, and it could come back."""
        return not FACTS[self.state].has_process or (self._start.host.is_calm and self._next_host.is_calm)

    @property
    def standby_start_id(self) -> str | None:
        return self._standby.start_id

    @property
    def start_ids(self) -> set[str]:
        """Of its process and of its standby: what marks their trees."""
        return {start for start in (self._start.id, self._standby.start_id) if start is not None}

    def pids(self) -> set[int]:
        """The processes of both, by the latest look at /proc."""
        latest = self._next_host.process_table.latest
        return {pid for start in self.start_ids for pid in latest.get(start, ())}

    def last_log(self) -> list[str]:
        """The end of what the latest start wrote."""
        return self._start.last_log()

    async def at_rest(self) -> None:
        """Wait until the engine is stopped for good: no process, no memory."""
        await self._at_rest.wait()
        await self._standby.gone()

    async def settled(self) -> None:
        """Like `at_rest`, but without waiting for held memory: no signal ends what holds it, and the end of
        the daemon must not wait for a driver."""
        await self._settled.wait()
        await self._standby.gone()

    # ------------------------------------------------------------------ inbox

    async def run(self) -> None:
        """Run for ever; cancel it once `settled`."""
        try:
            while True:
                event, sender = await self._inbox.get()
                if event.is_request:
                    event = resolve_request(self.state, event, on_demand=self.snapshot.on_demand)
                    counts = accepts(self.state, event) and self._start.may(event)
                else:  # a fact from an earlier state's work or from an earlier start is out of date
                    counts = sender is self._start or (sender is not None and sender is self._task)
                if counts:
                    try:
                        self._step(event)
                    except Exception:  # without its task the engine could not be stopped any more
                        logger.exception("%s: a bug in memoria", self.name)
        finally:
            self._standby.drop()
            self._end_turn()
            for task in (self._task, self._log_watch):
                if task is not None:
                    task.cancel()

    def _send(self, event: Event, sender: object = None) -> None:
        self._inbox.put_nowait((event, sender))

    def _step(self, event: Event) -> None:
        state = next_state(self.state, event)
        if self._task is not None:
            self._task.cancel()
        try:
            self._enter(state, event)
        finally:  # a state without its work would never end
            self._task = asyncio.create_task(self._do(self.state), name=f"{self.name} {self.state}")

    async def _do(self, state: State) -> None:
        try:
            event = await self._work[state]()
        except Exception as error:
            logger.exception("%s: a bug in memoria while %s", self.name, state)
            self._start.trouble = f"internal error: {error!r}"
            event = FACTS[state].on_bug
            await asyncio.sleep(self._pauses.after_bug)
        if event is not None:  # else only the outside can end the state
            self._send(event, asyncio.current_task())

    def _enter(self, state: State, event: Event) -> None:
        facts, now = FACTS[state], time.time()
        if state not in (State.READY, State.SUSPECT):
            self._end_turn()
        self._start.note(self.state, event, state)
        self._cause = event
        waits = state is State.BACKOFF or (state is State.DORMANT and self._delay > 0)
        retry_at = now + self._delay if waits else None
        self._publish(state=state, since=now, detail=self._start.reason(state, event), retry_at=retry_at)
        self._start.set_releasing(facts.frees_memory or self._start.core_lost)
        detail = self.snapshot.detail or event.value
        cause = event.name.lower()
        self._journal.add_event(EventKind.TRANSITION, self.name, detail, state=state.value, cause=cause)
        if not facts.has_process:
            self._start.forget()
            self._start = Start(self._next_host, self.log)
            self._publish(phase=None, percent=None, fetch=None, pid=None, start_id=None, address=None)
        if state is State.READY or event is Event.STEP_BACK:
            seconds = self._start.seconds_to_ready
            self._publish(phase=None, percent=None, diagnosis=None, start_seconds=seconds)
        if facts.at_rest or not self.wanted:
            self._standby.drop()
        for flag, holds in ((self._at_rest, facts.at_rest), (self._settled, facts.settled)):
            flag.set() if holds else flag.clear()

    def _publish(self, **changes: object) -> None:
        self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]
        self._on_change(self.snapshot)

    # ------------------------------------------------------------------ the states' work: starting

    async def _rest(self) -> None:
        return None

    async def _queue(self) -> Event:
        host = self._start.host = self._next_host
        if self._fetched_by is not host and not await host.has_model():
            return Event.MISSING
        self._start.ticket = self._start.host.ticket()
        if self._without_gate:
            await self._enter_gate()
        return Event.CLEARED

    async def _fetch(self) -> Event:
        host = self._start.host = self._next_host
        if (fetched := await self._start.fetch(self._publish)) is None:
            return Event.UNFETCHABLE
        self._fetched_by = host  # no second look: what vLLM misses it fetches itself
        self._journal.add_event(EventKind.FETCHED, self.name, size=size_text(fetched.total_bytes))
        self._delay = 0.0
        return Event.LIE_DORMANT if self.snapshot.on_demand else Event.FETCHED

    async def _get_ready(self) -> Event:
        try:
            await self._spawn()
        except MemoriaError as error:
            problem = error.problems[0]
            self._start.trouble = problem.what
            if problem.where:  # what is in the way: for the log, not for clients
                self._journal.add_event(EventKind.CANNOT_SPAWN, self.name, problem.line)
            return Event.UNSPAWNABLE
        try:
            if not self._without_gate and not await self._pass_gate():
                self._without_gate = self._start.behind_gate = True
                self._journal.add_event(EventKind.NO_PASSENGER, self.name)
                return Event.UNGUARDED
            async with asyncio.timeout(self._timeouts.start):
                await self._start.until_answering()
        except TimeoutError:
            phase = self.snapshot.phase or Phase.SPAWNED
            self._start.trouble = f"not ready in {self._timeouts.start:g} s ({phase})"
            return Event.OVERDUE
        if (excess := await self._start.find_excess()) is not None:
            self._start.trouble = excess.what
            self._journal.add_event(EventKind.STARTS_AGAIN, self.name, excess.what)
            return Event.OVERSIZED
        self.mark_ready()
        self._policy.saw_ready()
        return Event.ANSWERED

    async def _spawn(self) -> None:
        """Raises `MemoriaError`."""
        await self._standby.arrives(self._start.host)
        start = self._start = self._standby.take_over(self._start) or self._start
        if start.process is None:
            await start.spawn()
        assert start.process is not None
        self._log_watch = asyncio.create_task(self._watch_log(start), name=f"{self.name} log")
        self._publish(
            phase=Phase.SPAWNED,
            percent=None,
            pid=start.process.pid,
            start_id=start.id,
            address=start.address,
            figures=StartFigures(),
            start_seconds=None,
            restarts=self.snapshot.restarts + self._is_restart,
        )

    async def _pass_gate(self) -> bool:
        """Wait for the engine core at the gate, and let it through in its turn. False: it went on by itself,
        no passenger holds it. Raises `TimeoutError`; the wait at the gate has no end of its own."""
        start = self._start
        async with asyncio.timeout(self._timeouts.start):
            if not await start.reaches_gate():
                return False
        self._publish(phase=Phase.AT_GATE, percent=None)
        await self._enter_gate()
        start.let_core_through()
        return True

    async def _enter_gate(self) -> None:
        before = self.snapshot.diagnosis
        await self._start.enter_gate(self.on_blocked)
        self._publish(detail="", diagnosis=before)

    def mark_ready(self) -> None:
        self._start.mark_ready(self.traffic, self._timeouts.hang, self._pauses.second_look)

    def on_blocked(self, problem: Problem) -> None:
        if self.snapshot.detail != problem.what:
            advice = "; ".join((*problem.where, problem.hint or ""))
            self._publish(detail=problem.what, diagnosis=Diagnosis(problem.what, advice, "yes"))
            self._journal.add_event(EventKind.WAITS_FOR_MEMORY, self.name, problem.line)

    # ------------------------------------------------------------------ ready

    async def _watch_for_hang(self) -> Event:
        self._keep_standby()
        self._start.suspicion = await self._start.hang_watch.until_silent()
        return Event.SILENT

    async def _look_again(self) -> Event:
        if self._start.core_lost:  # its leader answers the requests that it has, and ends by itself
            await asyncio.sleep(self._pauses.core_grace)
        if not await self._start.hang_watch.is_hung():
            return Event.MOVED
        self._start.trouble = f"hung: {self._start.suspicion}"
        if self._start.connections is not None:
            self._start.connections.ask_for_stacks()
            await asyncio.sleep(self._pauses.stacks)
        return Event.HUNG

    def _keep_standby(self) -> None:
        if not self._next_host.standby:
            self._standby.drop()
        elif self._start.let_through:
            self._standby.keep(self._next_host, self._policy.settings, self._timeouts.start)

    async def _watch_log(self, start: Start) -> None:
        await start.watch(self._on_line)
        self._send(Event.EXITED, start)

    def _on_line(self, line: str, seen: Observation | None) -> None:
        if WATCHDOG.search(line):
            self._start.alert("vLLM's watchdog has fired")
        if seen is None:
            return
        self._publish(figures=self.snapshot.figures.with_observation(seen))
        at_gate = self.snapshot.phase is Phase.AT_GATE and not self._start.let_through
        if self.state is State.STARTING and not at_gate:
            self._publish(phase=seen.phase, percent=seen.percent)

    # ------------------------------------------------------------------ ending

    async def _make_room(self) -> Event:
        """Requests in flight are finished, however long they take; not those that only stay open."""
        if not await self._start.until_drained(self.traffic, self._timeouts.drain):
            return Event.SILENT
        if not self.traffic.in_flight and self._sleeper.may_sleep(self._start, self.snapshot.figures):
            await self._start.host.until_alone(self._on_neighbour)
            return Event.DOZE
        return await self._leave()

    async def _drain(self) -> Event:
        await self.traffic.idle(self._timeouts.drain)
        return await self._leave()

    async def _leave(self) -> Event:
        if cut := self.traffic.in_flight:
            self._journal.add_event(EventKind.DRAIN_TIMED_OUT, self.name, in_flight=cut)
        await self._start.host.until_alone(self._on_neighbour)
        self._start.set_releasing(True)  # before anyone else passes
        return Event.DRAINED

    def _on_neighbour(self, neighbour: str) -> None:
        self._publish(detail=f"waits until {neighbour} has started, which must not see memory move")
        self._journal.add_event(EventKind.WAITS_FOR_NEIGHBOUR, self.name, f"{neighbour} is behind the gate")

    async def _end_leader(self) -> Event | None:
        """SIGTERM only for one that has drained: vLLM swallows a SIGTERM while it initialises."""
        if self._start.process is None:
            return Event.EXITED
        grace = self._timeouts.stop if self._cause is Event.DRAINED else None
        ended = await self._start.end_leader(
            grace,
            self._timeouts.release,
            lambda: self._journal.add_event(EventKind.KILLED, self.name, seconds=self._timeouts.stop),
        )
        return None if ended else Event.STUCK  # `_watch_log` reports the exit

    async def _release(self) -> Event:
        try:
            async with asyncio.timeout(self._timeouts.release):
                await self._start.until_released(self._on_orphans)
        except TimeoutError:
            return Event.STUCK
        return await self._decide()

    async def _wait_for_memory(self) -> Event:
        before, process = self.snapshot.diagnosis, self._start.process
        if process is not None and (detail := "; ".join(self._start.host.holders(process.known))):
            self._journal.add_event(EventKind.MEMORY_HELD, self.name, detail)
            self._publish(diagnosis=Diagnosis(self.snapshot.detail, detail, "yes"))
        await self._start.until_surely_released(self._on_orphans, self._pauses.retry_held)
        self._publish(diagnosis=before)
        return await self._decide()

    def _on_orphans(self, pids: Collection[int]) -> None:
        self._journal.add_event(EventKind.ORPHANS_KILLED, self.name, pids=str(sorted(pids)))

    async def _decide(self) -> Event:
        """What follows a start that has ended and given its memory back."""
        start, crash = self._start, None
        if self.wanted and not start.end_requested:
            diagnosis = await start.diagnose(self.name, self.snapshot.figures.kv_gib)
            self._publish(diagnosis=diagnosis)
            crash = start.crash(diagnosis)
        decision = self._policy.decide(
            crash,
            wanted=self.wanted,
            standby_waits=self._standby.is_waiting,
            on_demand=self.snapshot.on_demand,
            made_room=start.has_made_room,
        )
        if decision.reason is not None:
            start.trouble = decision.reason
        self._delay, self._is_restart = decision.delay, not start.has_made_room
        return decision.event

    async def _back_off(self) -> Event:
        await asyncio.sleep(self._delay)
        return Event.DUE
