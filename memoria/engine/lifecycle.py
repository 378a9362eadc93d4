"""An engine's life: its states, every transition between them, and when to try again.

Everything that decides *what happens next* is in this file and is pure; the actor (`actor.py`) only does
what the state says. A pair that the table does not hold is a bug and raises.

    STOPPED    nobody wants it to run
    QUEUED     about to be spawned; waits for its turn at the gate if it has no passenger to hold it there
    STARTING   its process exists; it is importing, waiting at the GPU gate, or loading
    READY      it answered a real request
    SUSPECT    it seems to hang: it gets no new requests until a second look tells
    DRAINING   takes no new request, finishes the ones in flight
    STOPPING   SIGTERM, a grace, SIGKILL
    RELEASING  its leader is dead: the rest of its tree is killed, its memory comes back
    HELD       its memory did not come back in time, or its leader does not die; until it does nothing starts
               on that device
    BACKOFF    crashed, will be tried again
    FAILED     crashed for good, until a person or a reload acts
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from memoria.config.model import Restart


class State(StrEnum):
    STOPPED = "stopped"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    STOPPING = "stopping"
    RELEASING = "releasing"
    HELD = "held"
    BACKOFF = "backoff"
    FAILED = "failed"


class Event(StrEnum):
    START = "start requested"
    STOP = "stop requested"
    KILL = "stop requested, now"
    RESTART = "restart requested"  # a stop or a start, see `meant`
    RESTART_NOW = "restart requested, now"
    ADOPT = "has other settings"
    CLEARED = "may be spawned"
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
    DUE = "delay is over"


S, E = State, Event

# ruff: noqa: PLR2044 - an empty comment is the only blank line that the formatter leaves in a table
# Who may follow whom. Read a block as "in this state, on this event, go there".
TRANSITIONS: dict[tuple[State, Event], State] = {
    (S.STOPPED, E.START): S.QUEUED,
    #
    (S.QUEUED, E.CLEARED): S.STARTING,
    (S.QUEUED, E.ADOPT): S.QUEUED,  # with these it may belong at another gate
    (S.QUEUED, E.UNSPAWNABLE): S.RELEASING,
    (S.QUEUED, E.STOP): S.STOPPED,
    (S.QUEUED, E.KILL): S.STOPPED,
    #
    (S.STARTING, E.ANSWERED): S.READY,
    (S.STARTING, E.UNSPAWNABLE): S.RELEASING,
    (S.STARTING, E.OVERDUE): S.STOPPING,
    (S.STARTING, E.UNGUARDED): S.STOPPING,
    (S.STARTING, E.OVERSIZED): S.STOPPING,
    (S.STARTING, E.EXITED): S.RELEASING,
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.KILL): S.STOPPING,
    #
    (S.READY, E.EXITED): S.RELEASING,
    (S.READY, E.STOP): S.DRAINING,
    (S.READY, E.KILL): S.STOPPING,
    (S.READY, E.SILENT): S.SUSPECT,
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
    #
    (S.HELD, E.EXITED): S.RELEASING,
    (S.HELD, E.STUCK): S.HELD,
    (S.HELD, E.REST): S.STOPPED,
    (S.HELD, E.REQUEUE): S.QUEUED,
    (S.HELD, E.RETRY): S.BACKOFF,
    (S.HELD, E.GIVE_UP): S.FAILED,
    #
    (S.BACKOFF, E.DUE): S.QUEUED,
    (S.BACKOFF, E.START): S.QUEUED,
    (S.BACKOFF, E.STOP): S.STOPPED,
    (S.BACKOFF, E.KILL): S.STOPPED,
    #
    (S.FAILED, E.START): S.QUEUED,
    (S.FAILED, E.STOP): S.STOPPED,
    (S.FAILED, E.KILL): S.STOPPED,
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
    has_process: bool = False
    serves: bool = False  # requests may be in flight
    starts: bool = False  # ready as soon as a start takes
    at_rest: bool = False  # no process, and none will come by itself
    settles: bool = False  # waiting does not make it ready; or it is
    comes_back: bool = False  # by itself, unless it was stopped: then it is soon STOPPED
    frees_memory: bool = False  # device memory may move
    explained: bool = False  # the diagnosis and the end of its log are worth showing
    brief: bool = False  # passed through in an instant, or covered by what follows

    @property
    def crashed(self) -> bool:
        return self.explained and not self.has_process


QUIET, BUSY, GOOD, WARN, BAD = Tone
FACTS: dict[State, StateFacts] = {
    S.STOPPED: StateFacts("is stopped", QUIET, at_rest=True, settles=True),
    S.QUEUED: StateFacts("is queued", BUSY, starts=True, comes_back=True, brief=True),
    S.STARTING: StateFacts("is starting", BUSY, has_process=True, starts=True, comes_back=True),
    S.READY: StateFacts("is ready", GOOD, has_process=True, serves=True, settles=True),
    S.SUSPECT: StateFacts("seems to hang", WARN, has_process=True, serves=True, comes_back=True),
    S.DRAINING: StateFacts("is draining", BUSY, has_process=True, serves=True, comes_back=True),
    S.STOPPING: StateFacts("is stopping", BUSY, has_process=True, comes_back=True, frees_memory=True),
    S.RELEASING: StateFacts(
        "has ended, its memory is coming back",
        BUSY,
        has_process=True,
        comes_back=True,
        frees_memory=True,
        brief=True,
    ),
    S.HELD: StateFacts(
        "has ended, its memory has not come back",
        BAD,
        logging.ERROR,
        has_process=True,
        settles=True,
        frees_memory=True,
        explained=True,
    ),
    S.BACKOFF: StateFacts(
        "has ended and will be started again",
        WARN,
        logging.WARNING,
        settles=True,
        comes_back=True,
        explained=True,
    ),
    S.FAILED: StateFacts("has failed", BAD, logging.ERROR, at_rest=True, settles=True, explained=True),
}


class ImpossibleTransition(Exception):
    """A bug in memoria: the actor reported an event that its state cannot have."""


def next_state(state: State, event: Event) -> State:
    """Raises `ImpossibleTransition` for a pair that the table does not hold."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"{state.value}: {event.value}") from None


def accepts(state: State, wish: Event) -> bool:
    """Whether a wish changes anything in this state."""
    return (state, wish) in TRANSITIONS


def meant(state: State, wish: Event) -> Event:
    """A restart is a stop, which a start follows because the engine is wanted; where there is nothing to stop
    it is a start."""
    if wish not in (E.RESTART, E.RESTART_NOW):
        return wish
    if not FACTS[state].has_process:
        return E.START
    return E.STOP if wish is E.RESTART else E.KILL


@dataclass(frozen=True, slots=True)
class History:
    """What the restart policy remembers of one engine."""

    crashes: int = 0  # since the last long stretch of ready: the exponent of the delay
    unready_starts: int = 0  # in a row
    ever_ready: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a start ended without having been asked to. `ready_seconds` is None when it never got ready."""

    ready_seconds: float | None
    cause: str
    retryable: Literal["yes", "no", "limited"] = "yes"
    spoiled: bool = False  # a neighbour moved device memory meanwhile: not this engine's fault


@dataclass(frozen=True, slots=True)
class Verdict:
    """`delay` in seconds, None to give up; `reason` is for a person to read."""

    delay: float | None
    reason: str
    history: History


def after_crash(policy: Restart, history: History, ending: Ending, jitter: float) -> Verdict:
    """What follows an exit that was not asked for. `jitter` is uniform in [-1, 1].

    delay = min(cap, initial * 2^crashes) +- 20 %, counted anew after `reset` seconds of ready. Never ready in
    `attempts` starts: failed; a configuration error before the first ready: failed at once. An engine that
    was once ready is retried for ever (faults.md, "Backoff"). A spoiled start counts for nothing, and what it
    died of is no proof of a configuration error either.
    """
    if ending.ready_seconds is not None:
        long_enough = ending.ready_seconds >= policy.reset
        history = History(crashes=0 if long_enough else history.crashes, ever_ready=True)
    elif not ending.spoiled:
        history = replace(history, unready_starts=history.unready_starts + 1)

    if not history.ever_ready:
        if ending.retryable == "no" and not ending.spoiled:
            return Verdict(None, f"{ending.cause}; trying again would not help", history)
        if history.unready_starts >= policy.attempts:
            return Verdict(None, f"{ending.cause}; never ready in {history.unready_starts} starts", history)

    delay = min(policy.cap, policy.initial * 2.0**history.crashes) * (1 + 0.2 * jitter)
    if not ending.spoiled:
        history = replace(history, crashes=min(history.crashes + 1, 32))
    return Verdict(delay, ending.cause, history)
