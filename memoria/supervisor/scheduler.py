"""Which engine on demand is awake next. Pure: who is awake, who waits since when, what is free, the time.

Engines on demand share what the residents leave of a device. An awake one serves freely until another waits
for its room. From then on it keeps the room until it is idle, its turn is over, or the other has waited for
`patience`; then it takes no new requests, finishes those in flight, and makes room. The model whose oldest
request has waited longest is next, and all its requests go in at once.

Which of them may be awake together is the plan's answer, about any set of them.

A model waits at most for one turn of every other model that shares its room, with the time that each takes to
finish its requests and to swap: its own requests count from when it lost its room, so no model comes before
it twice. (A model of higher priority is not made to yield; the bound is that of equals.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal

from memoria.config.model import Swap


class Phase(StrEnum):
    AWAY = "away"
    WAKING = "waking"
    AWAKE = "awake"
    YIELDING = "yielding"  # finishes its requests; may be called off
    LEAVING = "leaving"  # its memory is on its way back


Cause = Literal["idle", "turn", "patience", "ttl", "blocked"]
Fits = Callable[[Set[str]], bool]  # whether these may be awake together; then any fewer may, too


@dataclass(frozen=True, slots=True)
class Model:
    """One engine on demand. Points in time are monotonic seconds.

    `since`: of the phase. `waiting_since`: of the oldest request that found it away. `last_used`: end of its
    latest request. `ttl`: seconds idle until it yields by itself; 0: never. `swap_seconds`: to yield and to
    wake again, as measured. `rate`: recent requests per second. `retry_at`: after a crash, not before.
    `blocked`: it waits for memory that other programs hold, and has none yet.
    """

    name: str
    phase: Phase
    since: float
    waiting_since: float | None = None
    busy: bool = False
    last_used: float = -math.inf
    priority: int = 0
    ttl: float = 0.0
    swap_seconds: float = 0.0
    rate: float = 0.0
    retry_at: float = -math.inf
    blocked: bool = False

    @property
    def holds_room(self) -> bool:
        return self.phase is not Phase.AWAY

    @property
    def in_line_since(self) -> float:
        """Requests that are older than the loss of its room do not count from before."""
        assert self.waiting_since is not None
        return max(self.waiting_since, self.since)


@dataclass(frozen=True, slots=True)
class Wake:
    engine: str


@dataclass(frozen=True, slots=True)
class Yield:
    """`for_`: who needs the room; None with the cause `ttl`."""

    engine: str
    cause: Cause
    for_: str | None = None


@dataclass(frozen=True, slots=True)
class CallOff:
    """The engine need not yield after all."""

    engine: str


Step = Wake | Yield | CallOff


@dataclass(frozen=True, slots=True)
class Decision:
    """`look_again`: when time alone changes it; infinity: never."""

    steps: tuple[Step, ...] = ()
    look_again: float = math.inf


def decide(models: Sequence[Model], fits: Fits, swap: Swap, now: float) -> Decision:
    steps: list[Step] = []
    times: list[float] = []
    holding = {model.name for model in models if model.holds_room}
    ending = {model.name for model in models if model.phase in (Phase.YIELDING, Phase.LEAVING)}
    evictable = [model for model in models if model.phase is Phase.AWAKE]
    waking = [model for model in models if model.phase is Phase.WAKING]
    waiters = line(models)
    for waiter in waiters:
        if waiter.retry_at > now:
            times.append(waiter.retry_at)
            continue
        if fits(holding | {waiter.name}):
            steps.append(Wake(waiter.name))
        elif not fits(stays := (holding - ending) | {waiter.name}):
            beneath = [model for model in evictable if model.priority <= waiter.priority]
            soon = [model for model in waking if model.priority <= waiter.priority]
            if not fits(stays - {model.name for model in (*beneath, *soon)}):
                continue  # those of higher priority leave no room
            for model in [m for m in soon if m.blocked]:
                if not fits(stays):  # it gives up its place in the plan; there is nothing to free
                    steps.append(Yield(model.name, "blocked", waiter.name))
                    waking.remove(model)
                    ending.add(model.name)
                    stays -= {model.name}
            if fits(stays):
                holding.add(waiter.name)
                continue
            ripe = [model for model in beneath if may_yield_at(model, waiter, swap) <= now]
            victims = cheapest(ripe, partial(_fits_without, fits, stays))
            for victim in victims or ():
                steps.append(Yield(victim.name, _cause(victim, waiter, swap, now), waiter.name))
                evictable.remove(victim)
                ending.add(victim.name)
            if victims is None:
                times += [may_yield_at(model, waiter, swap) for model in beneath if model not in ripe]
        holding.add(waiter.name)  # its room is kept: a younger one takes only what is left beside it
    steps += _idle_for_long(evictable, swap, now, times)
    steps += _called_off(models, waiters, steps)
    return Decision(tuple(steps), min((at for at in times if at > now), default=math.inf))


def line(models: Sequence[Model]) -> list[Model]:
    """The models that wait, the next one first."""
    waiting = [m for m in models if m.phase is Phase.AWAY and m.waiting_since is not None]
    return sorted(waiting, key=lambda model: (model.in_line_since, model.name))


def may_yield_at(model: Model, waiter: Model, swap: Swap) -> float:
    """The earliest time at which an awake model makes room for the waiter."""
    earliest = model.since + swap.min_awake
    if not model.busy:
        return earliest
    turn_over = max(model.since, waiter.in_line_since) + swap.turn
    return max(earliest, min(turn_over, waiter.in_line_since + swap.patience))


def _cause(model: Model, waiter: Model, swap: Swap, now: float) -> Cause:
    if not model.busy:
        return "idle"
    return "turn" if now >= max(model.since, waiter.in_line_since) + swap.turn else "patience"


def cheapest(candidates: Sequence[Model], enough: Callable[[Set[str]], bool]) -> tuple[Model, ...] | None:
    """The set that makes enough room at the least cost: idle models first, then by the time that swapping
    costs their clients, then the least recently used. None where not even all of them are enough.

    Branch and bound; `enough` holds for any larger set, too."""
    ordered = sorted(candidates, key=_weight)
    best: tuple[tuple[float, ...], tuple[Model, ...]] | None = None

    def extend(chosen: tuple[Model, ...], rest: Sequence[Model]) -> None:
        nonlocal best
        weight = _weight(*chosen)
        if best is not None and weight >= best[0]:
            return  # more members never weigh less
        names = {model.name for model in chosen}
        if enough(names):
            best = weight, chosen
        elif rest and enough(names | {model.name for model in rest}):
            extend((*chosen, rest[0]), rest[1:])
            extend(chosen, rest[1:])

    extend((), ordered)
    return None if best is None else best[1]


def _fits_without(fits: Fits, names: Set[str], gone: Set[str]) -> bool:
    return fits(names - gone)


def _weight(*models: Model) -> tuple[float, ...]:
    return (
        sum(model.busy for model in models),
        math.fsum(model.swap_seconds * model.rate for model in models),
        max((model.last_used for model in models), default=-math.inf),
        len(models),
    )


def _idle_for_long(models: Sequence[Model], swap: Swap, now: float, times: list[float]) -> Iterator[Yield]:
    for model in models:
        if model.ttl and not model.busy:
            over = max(model.since + swap.min_awake, max(model.since, model.last_used) + model.ttl)
            if over <= now:
                yield Yield(model.name, "ttl")
            else:
                times.append(over)


def _called_off(
    models: Sequence[Model], waiters: Sequence[Model], steps: Sequence[Step]
) -> Iterator[CallOff]:
    """A model that yields and has new requests serves on if nothing else waits any more."""
    if waiters or steps:
        return
    for model in models:
        if model.phase is Phase.YIELDING and model.waiting_since is not None:
            yield CallOff(model.name)


def seconds_until_awake(name: str, models: Sequence[Model], fits: Fits, swap: Swap, now: float) -> float:
    """An estimate for a request that comes now, by measured times: what is before it, and its own swap."""
    model = next(model for model in models if model.name == name)
    if model.phase is Phase.AWAKE:
        return 0.0
    own = max(0.0, model.retry_at - now) + model.swap_seconds
    if model.phase is Phase.WAKING:
        return max(0.0, own - (now - model.since))
    ahead = [other for other in line(models) if other.name != name]
    if not ahead and fits({other.name for other in models if other.holds_room} | {name}):
        return own
    awake = [other for other in models if other.phase is Phase.AWAKE and other.priority <= model.priority]
    turn_over = min((max(m.since + swap.min_awake, now + swap.turn * m.busy) for m in awake), default=now)
    return turn_over - now + sum(other.swap_seconds + swap.turn for other in ahead) + own
