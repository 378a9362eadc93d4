"""An engine's life: its states, the transitions between them, and when a crashed engine is started again.

Everything that decides *what happens next* is in this file, and is pure: the table, what each state means,
the restart policy. The actor (`actor.py`) only does what the state says. A pair that the table lacks is a bug
and raises.

    STOPPED    at rest: not wanted, or not started yet
    QUEUED     about to be spawned; waits here for the gate only if no passenger would hold it there later
    FETCHING   its model comes from the hub, which no gate and no start has to wait for
    STARTING   its process exists: importing, waiting at the GPU gate, or loading
    READY      has answered a real request
    SUSPECT    seems to hang: gets no new requests until a second look decides
    DRAINING   takes no new request, finishes those in flight
    STOPPING   SIGTERM, a grace, SIGKILL
    RELEASING  its leader is dead: the rest of its tree is killed, its memory comes back
    HELD       its memory did not come back in time, or its leader does not die; until then nothing starts on
               that device
    BACKOFF    crashed, will be tried again
    YIELDING   on demand: takes no new request, finishes those in flight, then makes room; may be called off
    DORMANT    on demand: no process; the scheduler starts it when a request comes
    DOZING     on demand: gives its memory back with its process alive (vLLM's sleep mode), behind the gate
    ASLEEP     on demand: its process holds little; the scheduler wakes it when a request comes
    WAKING     on demand: waits for room at the gate, takes its memory again, and must answer as before
    FAILED     crashed for good, until a person or a reload acts
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from memoria.config.model import Restart


class State(StrEnum):
    STOPPED = "stopped"
    QUEUED = "queued"
    FETCHING = "fetching"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STOPPING = "stopping"
    RELEASING = "releasing"
    HELD = "held"
    BACKOFF = "backoff"
    FAILED = "failed"
    YIELDING = "yielding"
    DORMANT = "dormant"
    DOZING = "dozing"
    ASLEEP = "asleep"
    WAKING = "waking"


class Event(StrEnum):
    START = "start requested"
    STOP = "stop requested"
    KILL = "stop requested, now"
    RESTART = "restart requested"  # a stop or a start, see `resolve_request`
    RESTART_NOW = "restart requested, now"
    ADOPT = "has other settings"
    OFFER = "start requested, on demand"
    WAKE = "is needed"
    YIELD = "makes room"
    CALL_OFF = "need not make room"
    STEP_BACK = "lets others pass"
    CLEARED = "may be spawned"
    MISSING = "its model is not here"
    FETCHED = "its model is here"
    UNFETCHABLE = "its model does not come"
    UNSPAWNABLE = "could not be spawned"
    ANSWERED = "answered a request"
    OVERDUE = "start timed out"
    UNGUARDED = "passed the gate by itself"
    OVERSIZED = "took a neighbour's memory"
    SILENT = "makes no progress"
    MOVED = "makes progress again"
    HUNG = "hangs"
    DRAINED = "no request left"
    EXITED = "exited"
    STUCK = "memory not released"
    REST = "stays stopped"
    REQUEUE = "starts again at once"
    RETRY = "starts again later"
    GIVE_UP = "is given up"
    LIE_DORMANT = "starts again on demand"
    DUE = "delay is over"
    DOZE = "may fall asleep"
    SLEPT = "has fallen asleep"
    SLEEPLESS = "did not fall asleep"
    UNWOKEN = "did not wake"
    WRONG = "answers wrongly since it woke"

    @property
    def is_request(self) -> bool:
        """From outside, at any time. Every other event is a fact, which only the state's own work or process
        may report."""
        requests = (E.START, E.STOP, E.KILL, E.RESTART, E.RESTART_NOW, E.ADOPT)
        return self in (*requests, E.OFFER, E.WAKE, E.YIELD, E.CALL_OFF, E.STEP_BACK)

    @property
    def intends_end(self) -> bool:
        """The end that follows is no crash: memoria wants it, whether or not the engine is to start again."""
        wanted = (E.STOP, E.KILL, E.UNGUARDED, E.OVERSIZED)
        return self in (*wanted, E.SLEEPLESS, E.UNWOKEN, E.WRONG)


S, E = State, Event

# ruff: noqa: PLR2044 - an empty comment is the only blank line that the formatter leaves in a table
# What may follow what. Read a block as "in this state, on this event, go there".
TRANSITIONS: dict[tuple[State, Event], State] = {
    (S.STOPPED, E.START): S.QUEUED,
    (S.STOPPED, E.OFFER): S.DORMANT,
    #
    (S.QUEUED, E.CLEARED): S.STARTING,
    (S.QUEUED, E.ADOPT): S.QUEUED,  # they may put it at another gate
    (S.QUEUED, E.MISSING): S.FETCHING,
    (S.QUEUED, E.UNSPAWNABLE): S.RELEASING,
    (S.QUEUED, E.STEP_BACK): S.DORMANT,
    (S.QUEUED, E.STOP): S.STOPPED,
    (S.QUEUED, E.KILL): S.STOPPED,
    #
    (S.FETCHING, E.FETCHED): S.QUEUED,
    (S.FETCHING, E.ADOPT): S.QUEUED,  # they may name another model
    (S.FETCHING, E.LIE_DORMANT): S.DORMANT,  # others had its room meanwhile
    (S.FETCHING, E.UNFETCHABLE): S.RELEASING,
    (S.FETCHING, E.STOP): S.STOPPED,
    (S.FETCHING, E.KILL): S.STOPPED,
    #
    (S.STARTING, E.ANSWERED): S.READY,
    (S.STARTING, E.UNSPAWNABLE): S.RELEASING,
    (S.STARTING, E.OVERDUE): S.STOPPING,
    (S.STARTING, E.UNGUARDED): S.STOPPING,
    (S.STARTING, E.OVERSIZED): S.STOPPING,
    (S.STARTING, E.EXITED): S.RELEASING,
    (S.STARTING, E.STEP_BACK): S.STOPPING,  # only at the gate, without memory
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.KILL): S.STOPPING,
    #
    (S.READY, E.EXITED): S.RELEASING,
    (S.READY, E.STOP): S.DRAINING,
    (S.READY, E.KILL): S.STOPPING,
    (S.READY, E.SILENT): S.SUSPECT,
    (S.READY, E.YIELD): S.YIELDING,
    #
    (S.SUSPECT, E.MOVED): S.READY,
    (S.SUSPECT, E.HUNG): S.STOPPING,
    (S.SUSPECT, E.EXITED): S.RELEASING,
    (S.SUSPECT, E.STOP): S.DRAINING,
    (S.SUSPECT, E.KILL): S.STOPPING,
    #
    (S.DRAINING, E.DRAINED): S.STOPPING,
    (S.DRAINING, E.EXITED): S.RELEASING,
    (S.DRAINING, E.KILL): S.STOPPING,
    #
    (S.STOPPING, E.EXITED): S.RELEASING,
    (S.STOPPING, E.KILL): S.STOPPING,  # a second Ctrl-C ends the grace
    (S.STOPPING, E.STUCK): S.HELD,  # its leader is in the kernel and does not die
    #
    (S.RELEASING, E.STUCK): S.HELD,
    (S.RELEASING, E.REST): S.STOPPED,
    (S.RELEASING, E.REQUEUE): S.QUEUED,
    (S.RELEASING, E.RETRY): S.BACKOFF,
    (S.RELEASING, E.GIVE_UP): S.FAILED,
    (S.RELEASING, E.LIE_DORMANT): S.DORMANT,
    #
    (S.HELD, E.EXITED): S.RELEASING,
    (S.HELD, E.STUCK): S.HELD,
    (S.HELD, E.REST): S.STOPPED,
    (S.HELD, E.REQUEUE): S.QUEUED,
    (S.HELD, E.RETRY): S.BACKOFF,
    (S.HELD, E.GIVE_UP): S.FAILED,
    (S.HELD, E.LIE_DORMANT): S.DORMANT,
    #
    (S.BACKOFF, E.DUE): S.QUEUED,
    (S.BACKOFF, E.START): S.QUEUED,
    (S.BACKOFF, E.STOP): S.STOPPED,
    (S.BACKOFF, E.KILL): S.STOPPED,
    #
    (S.FAILED, E.START): S.QUEUED,
    (S.FAILED, E.OFFER): S.DORMANT,
    (S.FAILED, E.STOP): S.STOPPED,
    (S.FAILED, E.KILL): S.STOPPED,
    #
    (S.YIELDING, E.CALL_OFF): S.READY,
    (S.YIELDING, E.DRAINED): S.STOPPING,
    (S.YIELDING, E.DOZE): S.DOZING,
    (S.YIELDING, E.SILENT): S.SUSPECT,
    (S.YIELDING, E.EXITED): S.RELEASING,
    (S.YIELDING, E.STOP): S.DRAINING,
    (S.YIELDING, E.KILL): S.STOPPING,
    #
    (S.DORMANT, E.WAKE): S.QUEUED,
    (S.DORMANT, E.START): S.QUEUED,  # it is resident now
    (S.DORMANT, E.STOP): S.STOPPED,
    (S.DORMANT, E.KILL): S.STOPPED,
    #
    (S.DOZING, E.SLEPT): S.ASLEEP,
    (S.DOZING, E.SLEEPLESS): S.STOPPING,  # never woken again: vLLM would run on unmapped memory
    (S.DOZING, E.EXITED): S.RELEASING,
    (S.DOZING, E.STOP): S.STOPPING,
    (S.DOZING, E.KILL): S.STOPPING,
    #
    (S.ASLEEP, E.WAKE): S.WAKING,
    (S.ASLEEP, E.START): S.WAKING,  # it is resident now
    (S.ASLEEP, E.HUNG): S.STOPPING,
    (S.ASLEEP, E.EXITED): S.RELEASING,
    (S.ASLEEP, E.STOP): S.STOPPING,
    (S.ASLEEP, E.KILL): S.STOPPING,
    #
    (S.WAKING, E.ANSWERED): S.READY,
    (S.WAKING, E.STEP_BACK): S.ASLEEP,
    (S.WAKING, E.UNWOKEN): S.STOPPING,
    (S.WAKING, E.WRONG): S.STOPPING,
    (S.WAKING, E.EXITED): S.RELEASING,
    (S.WAKING, E.STOP): S.STOPPING,
    (S.WAKING, E.KILL): S.STOPPING,
}


class Tone(StrEnum):
    """What a person should make of it; a terminal and the page have a colour for each."""

    QUIET = "quiet"
    BUSY = "busy"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class StateFacts:
    """One row of `FACTS`. `sentence` follows the engine's name; `level` is that of the log line."""

    sentence: str
    tone: Tone
    level: int = logging.INFO
    detail: str = ""  # why it is so, where that is always the same
    has_process: bool = False
    serves: bool = False  # requests may be in flight
    starts: bool = False  # ready as soon as a start takes
    is_away: bool = False  # at rest until a request comes
    at_rest: bool = False  # no process, and none will come by itself
    settles: bool = False  # waiting does not make it ready; or it is
    comes_back: bool = False  # by itself, unless it was stopped: then it is soon STOPPED
    frees_memory: bool = False  # device memory may move
    explained: bool = False  # the diagnosis and the end of its log are worth showing
    brief: bool = False  # passed through in an instant, or covered by what follows
    by_plan: bool = False  # nothing is wrong with an engine on demand
    # What the state's work reports when it fails by a bug: the engine's task must not end. While memory is on
    # its way back: that it has not come, which keeps the gate closed and is tried again.
    on_bug: Event | None = None

    @property
    def settled(self) -> bool:
        """The end of the daemon waits no longer: no signal ends what holds memory."""
        return self.at_rest or (self.settles and self.frees_memory)

    @property
    def crashed(self) -> bool:
        return self.explained and not self.has_process


QUIET, BUSY, GOOD, WARN, BAD = Tone
FACTS: dict[State, StateFacts] = {
    S.STOPPED: StateFacts("is stopped", QUIET, at_rest=True, settles=True),
    S.QUEUED: StateFacts(
        "is queued", BUSY, starts=True, comes_back=True, brief=True, by_plan=True, on_bug=E.UNSPAWNABLE
    ),
    S.FETCHING: StateFacts(
        "is fetching its model", BUSY, comes_back=True, by_plan=True, on_bug=E.UNFETCHABLE
    ),
    S.STARTING: StateFacts(
        "is starting", BUSY, has_process=True, starts=True, comes_back=True, by_plan=True, on_bug=E.OVERDUE
    ),
    S.READY: StateFacts("is ready", GOOD, has_process=True, serves=True, settles=True, on_bug=E.SILENT),
    S.SUSPECT: StateFacts(
        "seems to hang", WARN, has_process=True, serves=True, comes_back=True, on_bug=E.MOVED
    ),
    S.DRAINING: StateFacts(
        "is draining", BUSY, has_process=True, serves=True, comes_back=True, on_bug=E.DRAINED
    ),
    S.STOPPING: StateFacts(
        "is stopping",
        BUSY,
        has_process=True,
        comes_back=True,
        frees_memory=True,
        by_plan=True,
        on_bug=E.STUCK,
    ),
    S.RELEASING: StateFacts(
        "has ended, its memory is coming back",
        BUSY,
        has_process=True,
        comes_back=True,
        frees_memory=True,
        brief=True,
        by_plan=True,
        on_bug=E.STUCK,
    ),
    S.HELD: StateFacts(
        "has ended, its memory has not come back",
        BAD,
        logging.ERROR,
        "its memory has not come back; nothing starts on this device until it does",
        has_process=True,
        settles=True,
        frees_memory=True,
        explained=True,
        on_bug=E.STUCK,
    ),
    S.BACKOFF: StateFacts(
        "has ended and will be started again",
        WARN,
        logging.WARNING,
        settles=True,
        comes_back=True,
        explained=True,
        on_bug=E.DUE,
    ),
    S.FAILED: StateFacts("has failed", BAD, logging.ERROR, at_rest=True, settles=True, explained=True),
    S.YIELDING: StateFacts(
        "makes room", BUSY, has_process=True, serves=True, comes_back=True, by_plan=True, on_bug=E.CALL_OFF
    ),
    S.DORMANT: StateFacts(
        "is dormant",
        QUIET,
        detail="starts when a request comes",
        is_away=True,
        settles=True,
        comes_back=True,
        by_plan=True,
        on_bug=E.WAKE,
    ),
    S.DOZING: StateFacts(
        "is falling asleep", BUSY, has_process=True, comes_back=True, by_plan=True, on_bug=E.SLEEPLESS
    ),
    S.ASLEEP: StateFacts(
        "is asleep",
        QUIET,
        detail="wakes when a request comes",
        has_process=True,
        is_away=True,
        settles=True,
        comes_back=True,
        by_plan=True,
        on_bug=E.HUNG,
    ),
    S.WAKING: StateFacts(
        "is waking", BUSY, has_process=True, starts=True, comes_back=True, by_plan=True, on_bug=E.UNWOKEN
    ),
}


class ImpossibleTransition(Exception):
    """A bug in memoria: the actor reported an event that its state cannot have."""


def next_state(state: State, event: Event) -> State:
    """Raises `ImpossibleTransition` for a pair that the table lacks."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{state.value}: {event.value}") from None


# ------------------------------------------------------------------ requests


def accepts(state: State, request: Event) -> bool:
    """Whether a request changes anything in this state."""
    return (state, request) in TRANSITIONS


def resolve_request(state: State, request: Event, *, on_demand: bool = False) -> Event:
    """A restart is a stop, which a start follows because the engine is wanted; without a process it is a
    start. Which of an engine on demand is an offer: it starts when a request comes."""
    if request in (E.RESTART, E.RESTART_NOW):
        if FACTS[state].has_process:
            return E.STOP if request is E.RESTART else E.KILL
        request = E.START
    return E.OFFER if request is E.START and on_demand else request


# ------------------------------------------------------------------ restart policy


@dataclass(frozen=True, slots=True)
class Exit:
    """How a start ended that crashed. `ready_seconds`: None when it was never ready."""

    ready_seconds: float | None
    cause: str
    retryable: Literal["yes", "no", "limited"] = "yes"
    spoiled: bool = False  # a neighbour moved device memory meanwhile: not this engine's fault
    counts: bool = True  # among the attempts that it has; a network that is down ends no engine


@dataclass(frozen=True, slots=True)
class Decision:
    """`delay` in seconds before a RETRY, or before a dormant engine may be woken; `reason` is for people."""

    event: Literal[Event.REST, Event.REQUEUE, Event.RETRY, Event.GIVE_UP, Event.LIE_DORMANT]
    delay: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers of one engine."""

    crashes: int = 0  # since the last long stretch of ready: the exponent of the delay
    unready_starts: int = 0  # in a row
    ever_ready: bool = False


def backoff(settings: Restart, failures: int) -> float:
    """Seconds: initial * 2^failures, at most `cap`."""
    return min(settings.cap, settings.initial * 2.0 ** min(failures, 32))


class RestartPolicy:
    """What follows the end of a start. `settings` may be replaced at any time; `jitter` is uniform in
    [-1, 1]."""

    def __init__(
        self, settings: Restart, jitter: Callable[[], float], history: History | None = None
    ) -> None:
        self.settings, self._jitter = settings, jitter
        self.history = history or History()

    def pardon(self) -> None:
        """A person wants the engine: all its attempts are there again."""
        self.history = History(ever_ready=self.history.ever_ready)

    def saw_ready(self) -> None:
        self.history = replace(self.history, unready_starts=0, ever_ready=True)

    def decide(
        self,
        crash: Exit | None,
        *,
        wanted: bool = True,
        standby_waits: bool = False,
        on_demand: bool = False,
        made_room: bool = False,
    ) -> Decision:
        """`crash`: None when the end was requested; `made_room`: for another engine. An engine on demand does
        not come back by itself after a crash either: it waits, dormant, for a request and for the delay.

        delay = min(cap, initial * 2^crashes) +- 20 %, counted anew after `reset` seconds of ready. Never
        ready in `attempts` starts: failed; a configuration error before the first ready: failed at once. An
        engine that was once ready is retried for ever. A spoiled start counts for nothing, and its cause is
        no proof of a configuration error either. With a standby at the gate the first crash has no delay: the
        work that the delay would spare is done already.
        """
        if not wanted:
            return Decision(E.REST)
        if crash is None:
            return Decision(E.LIE_DORMANT if on_demand and made_room else E.REQUEUE)

        history = self.history
        if crash.ready_seconds is not None:
            long_enough = crash.ready_seconds >= self.settings.reset
            history = History(crashes=0 if long_enough else history.crashes, ever_ready=True)
        elif crash.counts and not crash.spoiled:
            history = replace(history, unready_starts=history.unready_starts + 1)
        self.history = history

        if not history.ever_ready:
            if crash.retryable == "no" and not crash.spoiled:
                return Decision(E.GIVE_UP, reason=f"{crash.cause}; trying again would not help")
            if history.unready_starts >= self.settings.attempts:
                return Decision(
                    E.GIVE_UP, reason=f"{crash.cause}; never ready in {history.unready_starts} starts"
                )

        delay = backoff(self.settings, history.crashes) * (1 + 0.2 * self._jitter())
        if not crash.spoiled:
            self.history = replace(history, crashes=min(history.crashes + 1, 32))
        at_once = standby_waits and self.history.crashes == 1
        if on_demand:
            return Decision(E.LIE_DORMANT, 0.0 if at_once else delay, crash.cause)
        return Decision(E.REQUEUE if at_once else E.RETRY, delay, crash.cause)
