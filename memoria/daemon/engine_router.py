"""The supervisor's engines as the proxy sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from memoria.config.model import Runner
from memoria.engine.actor import EngineActor
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.proxy.errors import Refusal, engine_gone
from memoria.proxy.router import Candidate
from memoria.supervisor.model_names import ModelNames
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm.facts import EngineAddress

Candidates = Mapping[tuple[Runner | None, int], tuple[Candidate, ...]]
RETRY_STARTING = 10  # seconds; a start takes at least that long
RETRY_OTHERWISE = 30


class EngineEntrance:
    """One start of an engine, and the address that it listens on."""

    __slots__ = ("_traffic", "address", "enter", "leave")

    def __init__(self, actor: EngineActor, address: EngineAddress) -> None:
        self.address, self._traffic = address, actor.traffic
        self.enter, self.leave = actor.traffic.began, actor.traffic.ended

    @property
    def works_until(self) -> float:
        return self._traffic.works_until


class EngineRouter:
    """Implements `memoria.proxy.router.Router`. `candidates`: those of the generation in force; `names`: the
    models that engines have beyond it, which no other engine has in the file."""

    def __init__(
        self,
        supervisor: Supervisor,
        candidates: Callable[[], Candidates],
        names: ModelNames,
    ) -> None:
        self._supervisor, self._configured, self._names = supervisor, candidates, names
        self._candidates: Candidates = {}
        self._made_of: tuple[Candidates, int] = self._candidates, 0
        self._entrances: dict[str, EngineEntrance] = {}

    def candidates(self, runner: Runner | None, port: int) -> tuple[Candidate, ...]:
        configured, changes = self._configured(), self._names.changes
        if self._made_of[0] is not configured or self._made_of[1] != changes:
            self._made_of = configured, changes
            self._candidates = {key: self._with_found(found) for key, found in configured.items()}
        return self._candidates.get((runner, port), ())

    def _with_found(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        taken = {model for candidate in candidates for model in candidate.models}
        return tuple(
            Candidate(one.engine, (*one.models, *(m for m in self._names.of(one.engine) if m not in taken)))
            for one in candidates
        )

    def look_for_models(self, done: Callable[[], None]) -> bool:
        return self._names.look(done)

    def entrance(self, engine: str) -> EngineEntrance:
        actor = self._supervisor.actors.get(engine)
        if actor is None:
            raise engine_gone(engine)
        snapshot = actor.snapshot
        if snapshot.state is not State.READY or snapshot.address is None:
            if snapshot.on_demand and FACTS[snapshot.state].comes_back:
                retry_after = max(1, round(self._supervisor.on_demand.want(engine)))
            else:
                retry_after = _retry_after(snapshot)
            raise Refusal(
                503,
                _reason(snapshot),
                "engine_not_ready",
                retry_after=retry_after,
                ready_in=_ready_in(snapshot),
            )
        entrance = self._entrances.get(engine)
        if entrance is None or entrance.address is not snapshot.address:
            entrance = self._entrances[engine] = EngineEntrance(actor, snapshot.address)
        return entrance


def _reason(snapshot: EngineSnapshot) -> str:
    text = f"engine `{snapshot.name}` {FACTS[snapshot.state].sentence}"
    if snapshot.phase:
        text += f" ({snapshot.phase.value})"
    cause = snapshot.detail or (snapshot.diagnosis.cause if snapshot.diagnosis else "")
    return f"{text}: {cause}" if cause else text


def _retry_after(snapshot: EngineSnapshot) -> int:
    if snapshot.fetch is not None and snapshot.fetch.seconds_left is not None:
        return round(snapshot.fetch.seconds_left) + RETRY_STARTING
    if snapshot.retry_at is not None:
        return max(1, round(snapshot.retry_at - time.time()) + RETRY_STARTING)
    return RETRY_STARTING if FACTS[snapshot.state].starts else RETRY_OTHERWISE


def _ready_in(snapshot: EngineSnapshot) -> float | None:
    if not FACTS[snapshot.state].comes_back:
        return None
    if snapshot.fetch is not None:
        return snapshot.fetch.seconds_left
    return 0.0 if snapshot.retry_at is None else max(0.0, snapshot.retry_at - time.time())
