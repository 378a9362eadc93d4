"""Engines on demand in the plan: which may be awake together, and which never could be."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from memoria.config.model import Config
from memoria.plan.awake_sets import largest_sets
from memoria.plan.plan import limit_problems, make_plan
from memoria.plan.wishes import settle
from tests.unit.plans import config, gpu, host, process


def on_demand(fractions: Mapping[str, str], *names: str, limit: str = "0.95") -> Config:
    made = config(fractions, limit=limit)
    engines = tuple(replace(engine, on_demand=engine.name in names) for engine in made.engines)
    return replace(made, engines=engines)


BOX = {"embed": "0.10", "chat": "0.40", "coder": "0.40", "rerank": "0.10", "vision": "0.30"}
ON_DEMAND = ("coder", "rerank", "vision")


def test_a_box_of_more_models_than_memory() -> None:
    plan = make_plan(on_demand(BOX, *ON_DEMAND), {0: gpu()})
    assert plan.problems == ()
    (device,) = plan.devices
    assert device.awake_sets == (("coder",), ("rerank", "vision"))
    assert [budget.engine for budget in device.awake] == ["embed", "chat", "coder"]
    assert device.fraction == Decimal("0.90")
    assert device.may_be_awake(set())
    assert device.may_be_awake({"rerank", "vision"})
    assert not device.may_be_awake({"coder", "rerank"})


def test_without_engines_on_demand_nothing_changes() -> None:
    (device,) = make_plan(config(BOX, limit="1"), {0: gpu()}).devices
    assert device.awake_sets == ()
    assert device.awake == device.budgets


def test_one_that_could_never_be_awake_is_refused_with_what_is_in_its_way() -> None:
    made = on_demand({"chat": "0.60", "coder": "0.40", "small": "0.05"}, "coder", "small")
    (problem,) = make_plan(made, {0: gpu()}).problems
    assert problem.what == "coder could never be awake: fractions add up to 1.00, the limit is 0.95"
    assert len(problem.where) == 2
    assert problem.hint == "lower chat to 0.55, or set `on_demand: true` for chat too"
    assert [found.what for found in limit_problems(made)] == [problem.what]


def test_residents_that_do_not_fit_are_one_problem() -> None:
    made = on_demand({"a": "0.60", "b": "0.60", "c": "0.10"}, "c")
    (problem,) = make_plan(made, {0: gpu()}).problems
    assert problem.what == "fractions add up to 1.20, the limit is 0.95"


def test_one_alone_on_its_device_may_have_all_of_it() -> None:
    plan = make_plan(on_demand({"a": "0.90", "b": "0.90"}, "a", "b"), {0: gpu()})
    assert plan.problems == ()
    assert plan.devices[0].awake_sets == (("a",), ("b",))


def test_contexts_count_for_those_that_are_awake() -> None:
    """Six at once fit the limit, but not beside their contexts."""
    names = [f"e{number}" for number in range(6)]
    plan = make_plan(on_demand(dict.fromkeys(names, "0.16"), *names, limit="1"), {0: gpu(total=2**36)})
    assert {len(together) for together in plan.devices[0].awake_sets} == {5}


def test_a_host_has_no_contexts() -> None:
    plan = make_plan(on_demand({"a": "0.5", "b": "0.5"}, "a", "b"), {0: host()})
    assert plan.devices[0].awake_sets == (("a",), ("b",))


def test_memory_that_others_hold_is_missed_by_the_largest_set() -> None:
    made = on_demand(BOX, *ON_DEMAND)
    plan = make_plan(made, {0: gpu(process(7, 30))})
    (problem,) = plan.memory_problems
    assert "the engines need 127.6 GiB" in problem.what


def test_a_share_counts_the_largest_engine_on_demand_alone() -> None:
    made = on_demand({"chat": "0", "coder": "0.40", "vision": "0.30"}, "coder", "vision")
    settled = settle(made, {0: gpu()}, {}, {})
    assert "0.70" not in " ".join(problem.what for problem in settled.problems)


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(0, 30))
def test_the_sets_are_all_largest_ones(sizes: list[int], room: int) -> None:
    names = [str(number) for number in range(len(sizes))]

    def fits(chosen: Set[str]) -> bool:
        return sum(sizes[int(name)] for name in chosen) <= room

    fitting = [
        frozenset(chosen)
        for size in range(1, len(names) + 1)
        for chosen in itertools.combinations(names, size)
        if fits(set(chosen))
    ]
    largest = {chosen for chosen in fitting if not any(chosen < other for other in fitting)}
    found = largest_sets(names, fits)
    assert {frozenset(chosen) for chosen in found} == largest
    assert len(found) == len(largest)


def test_many_engines_take_no_time() -> None:
    names = [str(number) for number in range(40)]
    assert len(largest_sets(names, lambda chosen: True)) == 1
    assert len(largest_sets(names, lambda chosen: len(chosen) <= 20)) == 64
