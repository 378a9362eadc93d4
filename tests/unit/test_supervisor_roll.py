"""In which order changed engines restart."""

from __future__ import annotations

from memoria.plan.plan import Plan, make_plan
from memoria.supervisor.roll import order
from tests.unit.plans import config, gpu


def plan(**fractions: str) -> Plan:
    return make_plan(config(fractions), {0: gpu()})


def test_who_gives_memory_back_goes_first() -> None:
    before, after = plan(a="0.3", b="0.6"), plan(a="0.6", b="0.3")
    assert order(["a", "b"], before, after) == ["b", "a"]


def test_else_the_files_order_counts() -> None:
    same = plan(a="0.2", b="0.2", c="0.2")
    assert order(["c", "a"], same, same) == ["a", "c"]
