"""What sleeping engines keep of a GPU, in the plan."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from memoria.config.model import Config
from memoria.plan.plan import Plan, make_plan
from memoria.supervisor.host_memory import HostMemory
from memoria.text import GIB
from memoria.vllm.facts import Sample, agree
from tests.unit.plans import config, gpu


def sleepers(**fractions: str) -> Config:
    """All on demand, but for `resident`."""
    made = config(fractions)
    on_demand = [replace(e, on_demand=e.name != "resident") for e in made.engines]
    engines = tuple(replace(e, sleep_level=1 if e.on_demand else 0) for e in on_demand)
    return replace(made, engines=engines, gpu_limit=Decimal(1))


def planned(made: Config, total: int = 100 * GIB, **asleep: int) -> Plan:
    return make_plan(made, {0: gpu(total=total, reserved=0)}, (), asleep)


def test_an_estimate_until_it_was_seen() -> None:
    made = sleepers(resident="0.3", a="0.3", b="0.3")
    assert [b.asleep_bytes for b in planned(made).devices[0].budgets] == [0, 3 * 2**29, 3 * 2**29]
    assert planned(made, a=GIB).budget("a").asleep_bytes == GIB


def test_who_sleeps_takes_room_from_who_is_awake() -> None:
    made = sleepers(resident="0.3", a="0.32", b="0.32", c="0.3")
    assert planned(made).devices[0].awake_sets == (("a", "b"), ("a", "c"), ("b", "c"))
    assert planned(made, c=7 * GIB).devices[0].awake_sets == (("a", "c"), ("b", "c"))
    seen = planned(made).devices[0].with_asleep({"c": 7 * GIB})
    assert not seen.may_be_awake({"a", "b"})
    assert seen.may_be_awake({"a", "c"})


def test_an_engine_that_could_never_be_awake_for_those_asleep_is_refused_with_a_remedy() -> None:
    made = sleepers(resident="0.5", a="0.47", b="0.2")
    assert planned(made, b=GIB).config_problems == ()
    (problem,) = planned(made, b=4 * GIB).config_problems
    assert problem.what.startswith("a could never be awake: ")
    assert "others keep 4.00 GiB asleep" in problem.what or "others keep 4.0 GiB asleep" in problem.what
    assert "`sleep_level: none` for b" in (problem.hint or "")


def test_host_memory_is_for_all_and_comes_back_with_the_process() -> None:
    memory = HostMemory(lambda: 100)
    assert memory.reserve("1", "a", 30, None) is None
    assert memory.reserve("1", "a", 30, None) is None  # its second sleep
    assert memory.reserve("2", "b", 30, None) is not None
    assert memory.reserve("2", "b", 30, 60) is None
    assert (memory.of("a"), memory.of("b")) == (30, 30)
    memory.release("1")
    assert memory.of("a") == 0
    assert memory.reserve("3", "c", 20, None) is None


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (" the", " the", True),
        (" the", "!", False),
        ((0.6, 0.8), (0.601, 0.799), True),
        ((0.6, 0.8), (0.8, 0.6), False),
        ((0.6, 0.8), (0.6,), False),
        ((0.6, 0.8), (float("nan"), 0.8), False),
        ((0.6, 0.8), (0.0, 0.0), False),
        ("x", (0.6,), False),
    ],
)
def test_what_the_same_weights_give(before: Sample, now: Sample, same: bool) -> None:
    assert agree(before, now) is same
