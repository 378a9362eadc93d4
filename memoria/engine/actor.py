"""One engine's task: the only writer of its state.

Wishes (start, stop, restart) and facts (it exited, it answered) arrive in one inbox (`machine.py`); the table
in `lifecycle.py` gives the next state, `states.py` says what each state does. Everyone else reads `snapshot`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from memoria.config.model import Restart, Timeouts
from memoria.engine.events import EventKind, Journal
from memoria.engine.host import EngineHost
from memoria.engine.lifecycle import FACTS, Event, State
from memoria.engine.log.file import LogFile
from memoria.engine.process.shared_memory import remove
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.start import Start
from memoria.engine.states import EngineStates


class EngineActor(EngineStates):
    """Its wishes may be called from any task of the loop."""

    def __init__(
        self,
        name: str,
        around: EngineHost,
        log: LogFile,
        journal: Journal,
        *,
        timeouts: Timeouts,
        restart: Restart,
        on_change: Callable[[EngineSnapshot], None] = lambda _: None,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
    ) -> None:
        super().__init__(
            name,
            around,
            log,
            journal,
            timeouts=timeouts,
            restart=restart,
            on_change=on_change,
            jitter=jitter,
        )
        self._turn: asyncio.Task[None] | None = None  # to end, which a wish waits for
        self._settled, self._at_rest = asyncio.Event(), asyncio.Event()
        self._settled.set()
        self._at_rest.set()

    def __repr__(self) -> str:
        return f"<EngineActor {self.name} {self.state}>"

    # ------------------------------------------------------------------ wishes

    def start(self) -> None:
        """Also gives an engine that had used up its attempts all of them again. A stop that still waits for
        its turn is called off."""
        if self._turn is not None and not self._wanted:
            self._end_turn()
            self._publish(detail="")
            self._journal.add_event(EventKind.STOP_CALLED_OFF, self.name)
        self._wanted = True
        self._judge.pardon()
        self._tell(Event.START)

    def stop(self, *, now: bool = False, in_turn: bool = False) -> None:
        """`in_turn`: it serves on while a neighbour is behind the gate, which must not see memory go."""
        self._wanted = False
        if in_turn and not now:
            self._tell_in_turn(Event.STOP)
        else:
            self._tell(Event.KILL if now else Event.STOP)

    def restart(self, *, now: bool = False) -> None:
        """In its turn, if not `now`: it serves on until it could come back, too."""
        self._wanted = True
        self._judge.pardon()
        if now:
            self._tell(Event.RESTART_NOW)
        else:
            self._tell_in_turn(Event.RESTART)

    def _tell_in_turn(self, wish: Event) -> None:
        if self.state is not State.READY:
            self._tell(wish)
        elif self._turn is None:  # else one such wish waits already, and what is wanted then decides
            self._turn = asyncio.create_task(self._until_turn(wish), name=f"{self.name} {wish}")

    async def _until_turn(self, wish: Event) -> None:
        if wish is Event.RESTART:
            await self._around.until_calm(self._on_wait)
        else:
            await self._around.until_alone(lambda neighbour: self._on_wait(f"{neighbour} is behind the gate"))
        self._turn = None
        self._tell(wish)

    def _on_wait(self, reason: str) -> None:
        self._publish(detail=f"{'restarts' if self._wanted else 'stops'} in its turn: {reason}")
        self._journal.add_event(EventKind.WAITS_FOR_NEIGHBOUR, self.name, reason)

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def adopt(self, around: EngineHost, timeouts: Timeouts, restart: Restart) -> None:
        """Other settings: the waits from the next one on, the rest from the next start on. The start that is
        there keeps its surroundings, whose gate and memory it is bound to."""
        if around.spec("") != self._next_around.spec(""):
            self._spare.discard()  # of the old settings
            self._without_gate = False  # perhaps another vLLM
        self._next_around = around
        self._timeouts, self._judge.policy = timeouts, restart
        if self._vigil is not None:
            self._vigil.adopt(timeouts.hang)
        self._tell(Event.ADOPT)
        if self.state is State.READY:
            self._mind_spare()

    # ------------------------------------------------------------------ what others may know

    @property
    def wanted(self) -> bool:
        """What a person wants: to run, or to rest."""
        return self._wanted

    @property
    def may_go(self) -> bool:
        """Whether it could be restarted now: nobody would see its memory go, and it could come back."""
        return not FACTS[self.state].has_process or (self._around.is_calm and self._next_around.is_calm)

    def pids(self) -> set[int]:
        """The processes of its tree and of its standby's, as the latest look at /proc has seen them."""
        starts = (self._current.id, self._spare.start_id)
        return {pid for start in starts if start for pid in self._around.census.latest.get(start, ())}

    @property
    def standby_start_id(self) -> str | None:
        return self._spare.start_id

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

    async def run(self) -> None:
        """For ever; cancel it once `settled`."""
        try:
            await super().run()
        finally:
            self._spare.discard()
            self._end_turn()
            if self._watch is not None:
                self._watch.cancel()

    def _enter(self, state: State, event: Event) -> None:
        if state not in (State.READY, State.SUSPECT):
            self._end_turn()
        if event in (Event.STOP, Event.KILL, Event.UNGUARDED, Event.OVERSIZED):
            self._current.asked = True
        self._gently = event is Event.DRAINED
        now = time.time()
        retry_at = now + self._delay if state is State.BACKOFF else None
        self._publish(state=state, since=now, detail=self._why(state, event), retry_at=retry_at)
        self._tell_gate(releasing=FACTS[state].frees_memory or self._current.core_lost)
        what = self.snapshot.detail or event.value
        cause = event.name.lower()
        self._journal.add_event(EventKind.TRANSITION, self.name, what, state=state.value, cause=cause)
        if not FACTS[state].has_process:
            self._forget_start()
        if state is State.READY:
            seconds = self._current.seconds_to_ready
            self._publish(phase=None, percent=None, diagnosis=None, start_seconds=seconds)
        if FACTS[state].at_rest or not self._wanted:
            self._spare.discard()
        _set(self._at_rest, FACTS[state].at_rest)
        _set(self._settled, FACTS[state].at_rest or state is State.HELD)

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
            self._around.set_releasing(self._current.id, False)
            self._around.forget(self._current.id)
        remove(self._current.segments)
        self._current, self._vigil = Start(), None
        self._publish(phase=None, percent=None, pid=None, start_id=None, address=None)


def _set(event: asyncio.Event, on: bool) -> None:
    if on:
        event.set()
    else:
        event.clear()
