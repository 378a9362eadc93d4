"""The scheduler: single decisions, eviction against brute force, and its promises in simulated time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoria.config.model import Swap
from memoria.supervisor.scheduler import (
    CallOff,
    Decision,
    Fits,
    Model,
    Phase,
    Wake,
    Yield,
    cheapest,
    decide,
    seconds_until_awake,
)

SWAP = Swap(turn=30, patience=60, min_awake=10)
NOW = 1000.0


def awake(name: str, **about: object) -> Model:
    return Model(name, Phase.AWAKE, **{"since": NOW - 500, **about})  # type: ignore[arg-type]


def away(name: str, **about: object) -> Model:
    return Model(name, Phase.AWAY, **{"since": NOW - 500, **about})  # type: ignore[arg-type]


def waits(name: str, seconds: float, **about: object) -> Model:
    return away(name, waiting_since=NOW - seconds, **about)


def at_once(room: int, **sizes: int) -> Fits:
    """Models of the given sizes, of 10 by default, within `room`."""
    return lambda names: sum(sizes.get(name, 10) for name in names) <= room


def wakes(name: str, **about: object) -> Model:
    return Model(name, Phase.WAKING, NOW - 5, **about)  # type: ignore[arg-type]


def test_one_that_waits_for_foreign_memory_gives_up_its_place() -> None:
    """It holds none: what fits beside the others goes first."""
    fits = at_once(20, big=20)
    big = wakes("big", blocked=True)
    assert decide([big, waits("b", 0)], fits, SWAP, NOW).steps == (Yield("big", "blocked", "b"),)
    assert decide([wakes("big"), waits("b", 0)], fits, SWAP, NOW).steps == ()
    assert decide([replace(big, priority=1), waits("b", 0)], fits, SWAP, NOW).steps == ()
    assert decide([big, waits("b", 0)], at_once(30, big=20), SWAP, NOW).steps == (Wake("b"),)
    one, two = wakes("one", blocked=True), wakes("two", blocked=True)
    assert len(decide([one, two, waits("b", 0)], fits, SWAP, NOW).steps) == 1
    steps = decide([one, awake("idle"), waits("c", 0)], at_once(20, c=20), SWAP, NOW).steps
    assert steps == (Yield("one", "blocked", "c"), Yield("idle", "idle", "c"))


@pytest.mark.parametrize(
    ("models", "room", "decision"),
    [
        pytest.param([awake("a", busy=True), away("b")], 10, Decision(), id="nothing waits"),
        pytest.param([awake("a"), waits("b", 0)], 20, Decision((Wake("b"),)), id="there is room"),
        pytest.param([awake("a"), waits("b", 0)], 19, Decision((Yield("a", "idle", "b"),)), id="idle"),
        pytest.param([awake("a", busy=True), waits("b", 5)], 10, Decision((), NOW + 25), id="its turn"),
        pytest.param(
            [awake("a", busy=True), waits("b", 30)], 10, Decision((Yield("a", "turn", "b"),)), id="turn over"
        ),
        pytest.param(
            [awake("a", busy=True, since=NOW - 20), waits("b", 60)],
            10,
            Decision((Yield("a", "patience", "b"),)),
            id="patience over",
        ),
        pytest.param([awake("a", since=NOW - 4), waits("b", 99)], 10, Decision((), NOW + 6), id="just awake"),
        pytest.param([awake("a", priority=1), waits("b", 99)], 10, Decision(), id="higher priority"),
        pytest.param(
            [awake("a", priority=1), waits("b", 99), waits("c", 9, priority=1)],
            10,
            Decision((Yield("a", "idle", "c"),)),
            id="a blocked one is passed by",
        ),
        pytest.param(
            [awake("a", since=NOW - 4), waits("big", 9), waits("c", 5)],
            20,
            Decision((), NOW + 6),
            id="a younger one does not take the room of an older one",
        ),
        pytest.param(
            [awake("a", since=NOW - 4), waits("big", 9), waits("c", 5)],
            30,
            Decision((Wake("big"),), NOW + 6),
            id="the younger one waits on its own account",
        ),
        pytest.param(
            [Model("a", Phase.LEAVING, NOW), waits("b", 9)], 10, Decision(), id="room is on its way"
        ),
        pytest.param(
            [Model("a", Phase.YIELDING, NOW, waiting_since=NOW), away("b")],
            10,
            Decision((CallOff("a"),)),
            id="called off",
        ),
        pytest.param(
            [Model("a", Phase.YIELDING, NOW, waiting_since=NOW), waits("b", 1)],
            10,
            Decision(),
            id="not called off",
        ),
        pytest.param(
            [awake("a", ttl=60, last_used=NOW - 60)],
            10,
            Decision((Yield("a", "ttl"),)),
            id="ttl",
        ),
        pytest.param([awake("a", ttl=60, last_used=NOW - 20)], 10, Decision((), NOW + 40), id="not yet"),
        pytest.param([awake("a", ttl=60, busy=True)], 10, Decision(), id="a ttl is of an idle engine"),
        pytest.param(
            [waits("a", 9, retry_at=NOW + 3), waits("b", 1)],
            10,
            Decision((Wake("b"),), NOW + 3),
            id="one that crashed holds up no other",
        ),
    ],
)
def test_one_decision(models: Sequence[Model], room: int, decision: Decision) -> None:
    assert decide(models, at_once(room, big=20), SWAP, NOW) == decision


def test_requests_from_before_its_turn_ended_do_not_bring_a_model_back_first() -> None:
    """Its queue is old; the other has waited for the room."""
    back = away("a", since=NOW - 1, waiting_since=NOW - 50)
    assert decide([back, waits("b", 40)], at_once(10), SWAP, NOW).steps == (Wake("b"),)


MODELS = st.lists(
    st.builds(
        Model,
        name=st.just(""),
        phase=st.just(Phase.AWAKE),
        since=st.just(0.0),
        busy=st.booleans(),
        last_used=st.integers(0, 5).map(float),
        swap_seconds=st.sampled_from([1.0, 4.0]),
        rate=st.sampled_from([0.0, 0.5, 2.0]),
    ),
    max_size=9,
)


@given(MODELS, st.lists(st.integers(1, 20), min_size=9, max_size=9), st.integers(1, 60))
@settings(deadline=None)
def test_the_evicted_set_is_the_best_of_all_subsets(
    models: list[Model], sizes: list[int], missing: int
) -> None:
    models = [replace(model, name=str(number)) for number, model in enumerate(models)]

    def is_enough(names: Set[str]) -> bool:
        return sum(sizes[int(name)] for name in names) >= missing

    found = cheapest(models, is_enough)
    enough = [
        subset
        for size in range(1, len(models) + 1)
        for subset in itertools.combinations(models, size)
        if is_enough({model.name for model in subset})
    ]
    if not enough:
        assert found is None
        return

    def price(subset: Sequence[Model]) -> tuple[float, ...]:
        return (
            len([m for m in subset if m.busy]),
            math.fsum(m.swap_seconds * m.rate for m in subset),
            max(m.last_used for m in subset),
            len(subset),
        )

    assert found is not None
    assert is_enough({model.name for model in found})
    assert price(found) == min(map(price, enough))


def test_many_candidates_take_no_time() -> None:
    models = [awake(str(n), rate=n % 5, swap_seconds=n, last_used=n) for n in range(30)]
    assert cheapest(models, lambda names: sum(10 + int(name) for name in names) >= 90) is not None
    assert cheapest(models, lambda _: False) is None


@dataclass
class Served:
    """An engine in simulated time. `seconds`: of a request. `switches`: when it was woken."""

    name: str
    size: int
    seconds: float
    leaves: float
    wakes: float
    phase: Phase = Phase.AWAY
    since: float = -1000.0
    over: float = math.inf  # of a phase that ends by itself
    queue: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)  # seconds awake before each end
    last_used: float = -math.inf
    woken: float = -math.inf
    yielded: float = -math.inf

    def enter(self, phase: Phase, now: float, seconds: float = math.inf) -> None:
        if phase is Phase.LEAVING:
            self.kept.append(self.yielded - self.woken)
        if phase is Phase.AWAKE and self.phase is Phase.WAKING:
            self.woken = now
        if phase is Phase.YIELDING:
            self.yielded = now
        self.phase, self.since, self.over = phase, now, now + seconds

    def model(self) -> Model:
        return Model(
            self.name,
            self.phase,
            self.since,
            waiting_since=self.queue[0] if self.queue and self.phase is not Phase.AWAKE else None,
            busy=bool(self.running),
            last_used=self.last_used,
        )

    def settle(self, now: float) -> None:
        if any(end <= now for end in self.running):
            self.last_used = now
        self.running = [end for end in self.running if end > now]
        if self.phase is Phase.WAKING and self.over <= now:
            self.enter(Phase.AWAKE, now)
        if self.phase is Phase.YIELDING and not self.running:
            self.enter(Phase.LEAVING, now, self.leaves)
        if self.phase is Phase.LEAVING and self.over <= now:
            self.enter(Phase.AWAY, now)
        if self.phase is Phase.AWAKE:
            self.waited += [now - at for at in self.queue]
            self.running += [now + self.seconds] * len(self.queue)
            self.queue = []


def simulate(engines: Sequence[Served], room: int, swap: Swap, arrivals: Sequence[tuple[float, int]]) -> None:
    """Until every request is served. No model ever holds room that is not there."""
    left, now = sorted(arrivals), 0.0
    fits = at_once(room, **{engine.name: engine.size for engine in engines})
    while True:
        while left and left[0][0] <= now:
            at, which = left.pop(0)
            engines[which].queue.append(at)
        for engine in engines:
            engine.settle(now)
        if not left and not any(engine.queue or engine.running for engine in engines):
            return
        decision = decide([engine.model() for engine in engines], fits, swap, now)
        for step in decision.steps:
            engine = next(engine for engine in engines if engine.name == step.engine)
            match step:
                case Wake():
                    engine.switches.append(now)
                    engine.enter(Phase.WAKING, now, engine.wakes)
                case Yield():
                    engine.enter(Phase.YIELDING, now)
                case CallOff():
                    engine.enter(Phase.AWAKE, now)
        assert sum(engine.size for engine in engines if engine.phase is not Phase.AWAY) <= room
        if decision.steps:
            continue
        events = [left[0][0]] if left else []
        for engine in engines:
            events += [*engine.running, engine.over]
        then = min([decision.look_again, *events])
        assert math.isfinite(then), "requests wait, and nothing will ever happen"
        now = max(now, then)


def bound(engine: Served, engines: Sequence[Served], swap: Swap) -> float:
    """Its own end and start, and of every other model a turn, its last requests and its swap."""
    turn = max(swap.turn, swap.min_awake)
    return sum(
        (0.0 if other is engine else turn) + other.seconds + other.leaves + other.wakes for other in engines
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Served], int, Swap, list[tuple[float, int]]]:
    count = draw(st.integers(2, 5))
    tenths = st.integers(0, 80).map(lambda number: number / 8)
    engines = [
        Served(str(n), draw(st.integers(1, 10)), 0.125 + draw(tenths), draw(tenths), draw(tenths))
        for n in range(count)
    ]
    room = draw(st.integers(max(e.size for e in engines), sum(e.size for e in engines)))
    swap = Swap(turn=draw(st.integers(1, 30)), patience=draw(st.integers(1, 60)), min_awake=draw(tenths))
    times = st.integers(0, 1600).map(lambda number: number / 8)
    arrivals = draw(st.lists(st.tuples(times, st.integers(0, count - 1)), min_size=1, max_size=60))
    return engines, room, swap, arrivals


@given(scenes())
@settings(deadline=None, max_examples=300)
def test_no_request_waits_longer_than_the_bound(
    scene: tuple[list[Served], int, Swap, list[tuple[float, int]]],
) -> None:
    engines, room, swap, arrivals = scene
    simulate(engines, room, swap, arrivals)
    assert sum(len(engine.waited) for engine in engines) == len(arrivals)
    for engine in engines:
        assert max(engine.waited, default=0.0) <= bound(engine, engines, swap) + 1e-6
        assert all(kept >= swap.min_awake for kept in engine.kept)


def engines_named(names: str, **about: float) -> list[Served]:
    return [Served(name, 10, **{"seconds": 1.0, "leaves": 2.0, "wakes": 3.0} | about) for name in names]  # type: ignore[arg-type]


def test_requests_of_one_model_are_served_together() -> None:
    """A B C A B C: two switches after the first load, not five."""
    engines = engines_named("abc")
    simulate(engines, 10, SWAP, [(n / 8, n % 3) for n in range(6)])
    assert sum(len(engine.switches) for engine in engines) == 3


def test_a_steady_model_does_not_starve_another() -> None:
    engines = engines_named("ab", seconds=4.0)
    simulate(engines, 10, SWAP, [*((n / 4, 0) for n in range(800)), (50.1, 1)])
    assert engines[1].waited == [pytest.approx(SWAP.turn + 4 + 2 + 3, abs=0.5)]
    assert len(engines[0].switches) == 2


def test_a_client_is_given_an_estimate_from_measured_times() -> None:
    """The estimate for a client: its own swap, and the turns before it."""
    seconds = 5.0
    b = away("b", swap_seconds=seconds)
    assert seconds_until_awake("a", [awake("a"), b], at_once(10), SWAP, NOW) == 0
    assert seconds_until_awake("b", [away("a"), b], at_once(10), SWAP, NOW) == seconds
    assert seconds_until_awake("b", [awake("a", busy=True), b], at_once(10), SWAP, NOW) == 30 + seconds
    assert (
        seconds_until_awake("b", [awake("a", busy=True), waits("c", 1), b], at_once(10), SWAP, NOW)
        == 60 + seconds
    )
    waking = Model("b", Phase.WAKING, NOW - 2, swap_seconds=seconds)
    assert seconds_until_awake("b", [waking], at_once(10), SWAP, NOW) == seconds - 2
