"""Events: what happened, in order. A kind with data; the English of each kind stands here and nowhere else.

Programs (the page, the CLI, tests) match on `kind`, and on `data` for a transition's state; people read
`what` and `detail`. Bounded, in memory.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from memoria.engine.lifecycle import FACTS, State, Tone

logger = logging.getLogger(__name__)

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR
QUIET, GOOD, WARN, BAD = Tone.QUIET, Tone.GOOD, Tone.WARN, Tone.BAD

Data = Mapping[str, str | int | float | bool]


class EventKind(StrEnum):
    # of an engine
    TRANSITION = "transition"  # data: `state`, and `cause`, the name of a `lifecycle.Event`
    START_REQUESTED = "start_requested"
    STOP_REQUESTED = "stop_requested"
    RESTART_REQUESTED = "restart_requested"
    WAKE_REQUESTED = "wake_requested"
    SLEEP_REQUESTED = "sleep_requested"
    STOP_CALLED_OFF = "stop_called_off"
    RESTART_WAITS = "restart_waits"
    WAITS_FOR_NEIGHBOUR = "waits_for_neighbour"
    WAITS_FOR_MEMORY = "waits_for_memory"
    GATE_PASSED = "gate_passed"
    GATE_LEFT = "gate_left"
    NO_PASSENGER = "no_passenger"
    FETCHED = "fetched"
    CANNOT_SPAWN = "cannot_spawn"
    STARTS_AGAIN = "starts_again"
    DRAIN_TIMED_OUT = "drain_timed_out"
    KILLED = "killed"
    ORPHANS_KILLED = "orphans_killed"
    MEMORY_HELD = "memory_held"
    OFF_PLAN = "off_plan"
    WAKES = "wakes"
    MAKES_ROOM = "makes_room"
    SLEEP_FAILED = "sleep_failed"
    ENDS_INSTEAD = "ends_instead"
    WAKE_FAILED = "wake_failed"
    WRONG_AFTER_WAKE = "wrong_after_wake"
    STANDBY_WAITING = "standby_waiting"
    STANDBY_TOOK_OVER = "standby_took_over"
    STANDBY_ENDED = "standby_ended"
    STANDBY_CANNOT_SPAWN = "standby_cannot_spawn"
    # of memoria
    LISTENING = "listening"
    CANNOT_LISTEN = "cannot_listen"
    RELOADED = "reloaded"
    RELOAD_REFUSED = "reload_refused"
    RELOAD_FAILED = "reload_failed"
    STOPPING = "stopping"
    STOPPING_NOW = "stopping_now"
    HANDED_OVER = "handed_over"
    LEFTOVER_KILLED = "leftover_killed"
    SERVER_ENDED = "server_ended"
    MPS_STARTED = "mps_started"
    MPS_ENDED = "mps_ended"
    MPS_SERVER_ENDED = "mps_server_ended"


@dataclass(frozen=True, slots=True)
class Words:
    """`detail` is a template over the event's data; None: each event brings free text, or nothing."""

    what: str
    detail: str | None = None
    tone: Tone = QUIET
    level: int = INFO


K = EventKind
WORDS: dict[EventKind, Words] = {
    K.START_REQUESTED: Words("start requested"),
    K.STOP_REQUESTED: Words("stop requested"),
    K.RESTART_REQUESTED: Words("restart requested"),
    K.WAKE_REQUESTED: Words("wake requested"),
    K.SLEEP_REQUESTED: Words("sleep requested"),
    K.STOP_CALLED_OFF: Words("stop called off", "it is to run"),
    K.RESTART_WAITS: Words("restart waits", "memory moves on its device"),
    K.WAITS_FOR_NEIGHBOUR: Words("waits for its turn"),
    K.WAITS_FOR_MEMORY: Words("waits for memory", tone=WARN),
    K.GATE_PASSED: Words("passed the gate", "{device}"),
    K.GATE_LEFT: Words("left the gate", "{device}"),
    K.NO_PASSENGER: Words("no passenger", "its vLLM does not load memoria's plugin", WARN),
    K.FETCHED: Words("has its model", "{size} fetched", GOOD),
    K.CANNOT_SPAWN: Words("cannot be spawned", tone=WARN, level=WARNING),
    K.STARTS_AGAIN: Words("starts again", tone=WARN, level=WARNING),
    K.DRAIN_TIMED_OUT: Words("drain timed out", "requests cut: {in_flight}", WARN),
    K.KILLED: Words("killed", "ignored SIGTERM for {seconds:g} s", WARN),
    K.ORPHANS_KILLED: Words("killed what outlived its leader", "pids {pids}", WARN),
    K.MEMORY_HELD: Words("still holds memory", tone=BAD, level=ERROR),
    K.OFF_PLAN: Words("beside the plan", tone=WARN),
    K.WAKES: Words("is woken"),
    K.MAKES_ROOM: Words("makes room"),
    K.SLEEP_FAILED: Words("did not fall asleep", tone=WARN, level=WARNING),
    K.ENDS_INSTEAD: Words("ends instead of sleeping", tone=WARN),
    K.WAKE_FAILED: Words("did not wake", tone=WARN, level=WARNING),
    K.WRONG_AFTER_WAKE: Words("is wrong after its wake", tone=BAD, level=ERROR),
    K.STANDBY_WAITING: Words("standby waits at the gate", tone=GOOD),
    K.STANDBY_TOOK_OVER: Words("standby takes over", "pid {pid}", WARN),
    K.STANDBY_ENDED: Words("standby ended", "{reason}; another one in {delay:g} s", WARN),
    K.STANDBY_CANNOT_SPAWN: Words("standby could not be spawned", tone=WARN),
    K.LISTENING: Words("listening", tone=GOOD),
    K.CANNOT_LISTEN: Words("cannot listen yet", tone=WARN, level=WARNING),
    K.RELOADED: Words("reloaded"),
    K.RELOAD_REFUSED: Words("reload refused, nothing has changed", tone=BAD, level=WARNING),
    K.RELOAD_FAILED: Words("reload failed, a bug in memoria", tone=BAD, level=ERROR),
    K.STOPPING: Words("stopping", "requests in flight may finish"),
    K.STOPPING_NOW: Words("stopping now"),
    K.HANDED_OVER: Words("handed over", "another daemon takes over"),
    K.LEFTOVER_KILLED: Words("killed a leftover", "pid {pid}, of a daemon that was killed"),
    K.MPS_STARTED: Words("MPS is up", "control daemon {pid}", GOOD),
    K.MPS_ENDED: Words("the MPS control daemon has ended, engines restart", tone=BAD, level=ERROR),
    K.MPS_SERVER_ENDED: Words("an MPS server has ended, engines restart", tone=BAD, level=ERROR),
    K.SERVER_ENDED: Words("the HTTP server has ended by itself", level=ERROR, tone=BAD),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is wall-clock seconds, `monotonic` orders entries; `subject` is an engine's name, or "memoria".
    `number` counts from 1, without gaps."""

    at: float
    monotonic: float
    subject: str
    kind: EventKind
    detail: str = ""
    data: Data = field(default_factory=dict)
    number: int = 0

    @property
    def state(self) -> State | None:
        """The state that a transition leads to."""
        return State(str(self.data["state"])) if self.kind is K.TRANSITION else None

    @property
    def what(self) -> str:
        """In a log line and a table: short."""
        return self.state or WORDS[self.kind].what

    @property
    def text(self) -> str:
        """After the subject, as a sentence."""
        what = FACTS[self.state].sentence if self.state else self.what
        return f"{what}: {self.detail}" if self.detail else what

    @property
    def tone(self) -> Tone:
        return FACTS[self.state].tone if self.state else WORDS[self.kind].tone

    @property
    def level(self) -> int:
        return FACTS[self.state].level if self.state else WORDS[self.kind].level

    def to_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "at": self.at,
            "subject": self.subject,
            "kind": self.kind.value,
            "data": dict(self.data),
            "what": str(self.what),
            "detail": self.detail,
            "text": self.text,
            "tone": self.tone.value,
        }


class Journal:
    """Keeps the latest `size` events, logs each, and calls the listeners with it."""

    def __init__(self, size: int = 1000) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._listeners: list[Callable[[Entry], None]] = []
        self.last = 0  # the number of the latest entry

    def add_event(
        self, kind: EventKind, subject: str, detail: str = "", **data: str | int | float | bool
    ) -> None:
        """`detail` is free text, for kinds that have no template of their own."""
        if kind is not K.TRANSITION and (template := WORDS[kind].detail) is not None:
            detail = template.format_map(data)
        self.last += 1
        entry = Entry(time.time(), time.monotonic(), subject, kind, detail, data, self.last)
        self._entries.append(entry)
        extra = {"engine": subject, "event": kind.value, "data": data, "detail": detail}
        message = f"{entry.what}: {detail}" if detail else entry.what
        logger.log(entry.level, "%s: %s", subject, message, extra=extra)
        for listener in self._listeners:
            try:
                listener(entry)
            except Exception:  # a screen's bug must not stop an engine's task
                logger.exception("a listener failed")

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def after(self, number: int) -> tuple[Entry, ...]:
        """The entries after this number, as far as they are kept."""
        missing = min(self.last - number, len(self._entries))
        return tuple(islice(self._entries, len(self._entries) - missing, None)) if missing > 0 else ()

    def listen(self, listener: Callable[[Entry], None]) -> None:
        self._listeners.append(listener)
