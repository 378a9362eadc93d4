"""Engines on demand: what the scheduler decides, done. Requests for one that is away make it wanted."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from memoria.engine.actor import EngineActor
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import Event, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.plan.budgets import DevicePlan
from memoria.preflight.preflight import Deployment
from memoria.supervisor.scheduler import (
    CallOff,
    Model,
    Phase,
    Step,
    Wake,
    Yield,
    decide,
    seconds_until_awake,
)

logger = logging.getLogger(__name__)

UNKNOWN_START = 30.0  # seconds, until a start was measured
RATE_OVER = 300.0  # seconds in which a rate of requests falls to a third
# A client that was refused comes back after Retry-After; one that does not has given up.
LEAST_PATIENCE = 60.0

PHASES: Mapping[State, Phase] = {
    State.DORMANT: Phase.AWAY,
    State.FETCHING: Phase.AWAY,  # for minutes or hours, without memory
    State.QUEUED: Phase.WAKING,
    State.STARTING: Phase.WAKING,
    State.READY: Phase.AWAKE,
    State.SUSPECT: Phase.WAKING,  # not to be ended before the second look
    State.YIELDING: Phase.YIELDING,
    State.DRAINING: Phase.LEAVING,
    State.STOPPING: Phase.LEAVING,
    State.RELEASING: Phase.LEAVING,
    State.HELD: Phase.LEAVING,
    State.DOZING: Phase.LEAVING,
    State.ASLEEP: Phase.AWAY,
    State.WAKING: Phase.WAKING,
}
Reason = Literal["request", "preload", "hand"]
REASONS: Mapping[Reason, str] = {
    "request": "for a request",
    "preload": "once with memoria (`preload`)",
    "hand": "by hand",
}


@dataclass(slots=True)
class _About:
    """One engine, as the scheduler sees it. Times are monotonic seconds."""

    phase: Phase | None = None  # None: stopped, or failed
    since: float = field(default_factory=time.monotonic)
    awake_since: float = -math.inf
    left_in: float = 0.0  # seconds from its last request to its memory's return, the last time
    yielded_at: float | None = None
    wanted_since: float | None = None
    wanted_until: float = -math.inf
    not_before: float = -math.inf  # it has let others pass
    reason: Reason = "request"
    last_used: float = -math.inf
    total: int = 0  # requests, when the rate was taken
    rate: float = 0.0
    rate_at: float = field(default_factory=time.monotonic)


class OnDemand:
    """Wakes and ends the engines on demand of all devices. `actors` and `deployment` are those in force."""

    def __init__(
        self,
        actors: Callable[[], Mapping[str, EngineActor]],
        deployment: Callable[[], Deployment],
        journal: Journal,
    ) -> None:
        self._actors, self._deployment, self._journal = actors, deployment, journal
        self._about: dict[str, _About] = {}
        self._changed = asyncio.Event()

    def want(self, name: str, reason: Reason = "request") -> float:
        """A request is there for an engine that is away, or someone wants it. Returns the seconds until it
        will be awake, estimated from measured times."""
        about = self._about.setdefault(name, _About())
        now = time.monotonic()
        if about.wanted_since is None:
            about.wanted_since, about.reason, about.wanted_until = now, reason, now + LEAST_PATIENCE
            self._changed.set()
        seconds = self._seconds_until_awake(name, now)
        kept = max(LEAST_PATIENCE, 2 * seconds) if reason == "request" else math.inf
        about.wanted_until = max(about.wanted_until, now + kept)
        return seconds

    def keep(self, name: str, seconds: float) -> None:
        """Its `ttl` does not end it for so long."""
        about = self._about.setdefault(name, _About())
        about.last_used = max(about.last_used, time.monotonic() + seconds)

    def forget(self, name: str) -> None:
        """It is not wanted any more."""
        if (about := self._about.get(name)) is not None:
            about.wanted_since, about.wanted_until = None, -math.inf

    def waits(self, name: str) -> bool:
        """Whether it is wanted and away: it waits for room, or for its turn."""
        about = self._about.get(name)
        return about is not None and about.wanted_since is not None and about.phase is Phase.AWAY

    def look(self) -> None:
        """Something else has changed: the deployment."""
        self._changed.set()

    def on_change(self, snapshot: EngineSnapshot) -> None:
        """Call with every new snapshot."""
        if not snapshot.on_demand:
            return
        about, now = self._about.setdefault(snapshot.name, _About()), time.monotonic()
        phase = PHASES.get(snapshot.state)
        self._changed.set()
        if phase is about.phase:
            return
        before, about.phase, about.since = about.phase, phase, now
        if phase is Phase.AWAKE and before is not Phase.YIELDING:
            about.awake_since = now
        if phase is Phase.AWAKE or phase is None:
            about.wanted_since, about.wanted_until = None, -math.inf
        if phase is Phase.LEAVING:
            about.yielded_at = now
        if phase is Phase.AWAY and about.yielded_at is not None:
            about.left_in, about.yielded_at = now - about.yielded_at, None

    def on_idle(self, name: str) -> None:
        """The last request of an engine has ended."""
        if (about := self._about.get(name)) is not None:
            about.last_used = max(about.last_used, time.monotonic())
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            look_again = math.inf
            try:
                look_again = min(map(self._attend, self._deployment().plan.devices), default=math.inf)
            except Exception:  # without its task no engine would be woken any more
                logger.exception("a bug in memoria while it scheduled engines on demand")
                look_again = time.monotonic() + LEAST_PATIENCE
            timeout = None if math.isinf(look_again) else max(0.0, look_again - time.monotonic())
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _attend(self, plan: DevicePlan) -> float:
        """Returns when to look again."""
        now = time.monotonic()
        models, plan = self._models(plan, now), self._measured(plan)
        decision = decide(models, plan.may_be_awake, self._deployment().config.swap, now)
        for step in decision.steps:
            self._do(step)
        ends = [self._about[model.name].wanted_until for model in models if model.waiting_since is not None]
        return min([decision.look_again, *ends])

    def _do(self, step: Step) -> None:
        actor = self._actors()[step.engine]
        match step:
            case Wake():
                reason, away = self._about[step.engine].reason, actor.state.value
                self._journal.add_event(
                    EventKind.WAKES, step.engine, REASONS[reason], cause=reason, away=away
                )
                actor.schedule(Event.WAKE)
            case Yield():
                self._journal.add_event(EventKind.MAKES_ROOM, step.engine, _why(step), cause=step.cause)
                if step.cause == "blocked":
                    self._about[step.engine].not_before = (
                        time.monotonic() + self._deployment().config.swap.turn
                    )
                actor.schedule(Event.STEP_BACK if step.cause == "blocked" else Event.YIELD)
            case CallOff():
                actor.schedule(Event.CALL_OFF)

    def _models(self, plan: DevicePlan, now: float) -> list[Model]:
        names = [budget.engine for budget in plan.on_demand]
        found = (self._model(name, now) for name in names if name in self._actors())
        return [model for model in found if model is not None]

    def _model(self, name: str, now: float) -> Model | None:
        actor, about = self._actors()[name], self._about.setdefault(name, _About())
        engine = self._deployment().config.engine(name)
        if about.phase is None:
            return None
        if about.wanted_until < now:
            about.wanted_since = None
        retry_at = actor.snapshot.retry_at
        self._take_rate(about, actor.traffic.total, now)
        return Model(
            name,
            about.phase,
            about.awake_since if about.phase is Phase.AWAKE else about.since,
            waiting_since=None if actor.state is State.FETCHING else about.wanted_since,
            busy=actor.traffic.in_flight > 0,
            last_used=about.last_used,
            priority=engine.priority,
            ttl=engine.ttl,
            swap_seconds=about.left_in + self._seconds_to_come(actor),
            rate=about.rate,
            retry_at=max(about.not_before, -math.inf if retry_at is None else now + retry_at - time.time()),
            blocked=actor.snapshot.is_blocked,
        )

    def _seconds_to_come(self, actor: EngineActor) -> float:
        """From asleep, where it sleeps and was once woken, else from a start."""
        snapshot, level = actor.snapshot, self._deployment().config.engine(actor.snapshot.name).sleep_level
        wakes = level > 0 and snapshot.pid is not None  # an engine without a process starts
        return (snapshot.sleep.wake_seconds if wakes else None) or snapshot.start_seconds or UNKNOWN_START

    def _measured(self, plan: DevicePlan) -> DevicePlan:
        """The plan with what engines of it were seen to keep asleep since."""
        actors = [self._actors()[b.engine] for b in plan.on_demand if b.engine in self._actors()]
        kept = {a.snapshot.name: a.snapshot.sleep.asleep_bytes for a in actors}
        return plan.with_asleep({name: size for name, size in kept.items() if size is not None})

    def _take_rate(self, about: _About, total: int, now: float) -> None:
        if (passed := now - about.rate_at) >= 1:
            kept = math.exp(-passed / RATE_OVER)
            about.rate = about.rate * kept + (total - about.total) / RATE_OVER
            about.total, about.rate_at = total, now

    def _seconds_until_awake(self, name: str, now: float) -> float:
        deployment = self._deployment()
        plan = next(p for p in deployment.plan.devices if any(b.engine == name for b in p.budgets))
        models = self._models(plan, now)
        if all(model.name != name for model in models):
            return UNKNOWN_START
        fits = self._measured(plan).may_be_awake
        return seconds_until_awake(name, models, fits, deployment.config.swap, now)


def _why(step: Yield) -> str:
    because = {
        "idle": "it is idle",
        "turn": "its turn is over",
        "patience": "the other has waited long enough",
        "ttl": "it was idle for its `ttl`",
        "blocked": "it waits for memory that other programs hold",
    }[step.cause]
    return f"for {step.for_}: {because}" if step.for_ else because
