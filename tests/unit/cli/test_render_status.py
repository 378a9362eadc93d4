"""What `memoria status` says below its table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memoria.admin.status.status import GuardStatus, PlannedTerm
from memoria.cli.screens.status import render_status
from memoria.text import GIB
from tests.unit.admin.test_status import STATUS

GUARD = GuardStatus("generation", ("embedding", "reranker"), target=0.05, gap_p95=None, limit=None, lowered=0)


def last_line(guard: GuardStatus | None) -> str:
    return render_status(replace(STATUS, guard=guard), width=120, color=False).splitlines()[-1]


def test_without_a_guard_nothing_is_said_of_it() -> None:
    assert "guard" not in last_line(None)


@pytest.mark.parametrize(
    ("gap_p95", "limit", "lowered", "said"),
    [
        (None, None, 0, "; no limit in force"),
        (0.0312, None, 4, ", p95 31 ms; no limit in force"),
        (0.0614, 4, 1, ", p95 61 ms; embedding, reranker limited to 4 at once, lowered once"),
        (0.0614, 2, 3, ", p95 61 ms; embedding, reranker limited to 2 at once, lowered 3 times"),
    ],
)
def test_the_guard_says_what_it_keeps_to_and_whom_it_holds_back(
    gap_p95: float | None, limit: int | None, lowered: int, said: str
) -> None:
    guard = replace(GUARD, gap_p95=gap_p95, limit=limit, lowered=lowered)
    assert last_line(guard) == f"guard: generation keeps to 50 ms between tokens{said}"


def test_terms_that_the_plan_was_wrong_about_are_shown() -> None:
    plan = (
        PlannedTerm("kv_tokens", 1000, 900, -0.1, True),
        PlannedTerm("weights_bytes", GIB, GIB, 0.0, False),
        PlannedTerm("graph_bytes", GIB, 3 * GIB, 2.0, True),
    )
    first, *others = STATUS.engines
    status = replace(STATUS, engines=(replace(first, plan=plan), *others))
    assert (
        f"{first.name}: its KV cache holds 10% fewer tokens than planned, 900 instead of 1 000; its CUDA "
        "graphs take 200% more than planned, 3.0 instead of 1.0 GiB; `memoria plan` is updated"
    ) in " ".join(render_status(status, width=120, color=False).split())
