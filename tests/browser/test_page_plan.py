"""The picture of an engine's budget: what it is planned to hold beside what was measured, on one scale."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from memoria.admin.status.status import EngineStatus, MeasuredMemory, MemoryPlan
from memoria.text import GIB
from tests.browser.acts import LOOKS, reads_well
from tests.browser.chromium import Page
from tests.unit.status_examples import EMBEDDING

DRAW = """
import('/page/budget.js').then(({ makeBudget, updateBudget }) => {
  const part = makeBudget('e0');
  document.getElementById('devices').replaceChildren(part.element);
  updateBudget(part, %s);
  part.element.querySelector('details').open = true;
  const bars = [...part.element.querySelectorAll('.holding')];
  const box = (bar, element) => {
    const [outer, inner] = [bar.getBoundingClientRect(), element.getBoundingClientRect()];
    return [(inner.x - outer.x) / outer.width, inner.width / outer.width];
  };
  const error = part.element.querySelector('.error');
  return {
    hidden: part.element.hidden,
    verdict: part.verdict.textContent,
    bars: bars.map((bar) => [...bar.querySelectorAll('b')].map((one) => [one.className, ...box(bar, one)])),
    budgets: bars.map((bar) => box(bar, bar.querySelector('u'))[1]),
    error: error.hidden ? null : box(bars[0], error),
    labels: bars.map((bar) => bar.getAttribute('aria-label')),
    rows: [...part.element.querySelectorAll('tbody tr:not([hidden])')].map((row) => row.innerText),
  };
})
"""
MEASURED = MeasuredMemory(int(2 * GIB), int(0.5 * GIB), int(6 * GIB))
PLAN = MemoryPlan(
    weights_bytes=2 * GIB,
    step_bytes=GIB,
    graph_bytes=GIB // 2,
    kv_bytes=int(6.5 * GIB),
    context_bytes=GIB // 2,
    bar_bytes=GIB // 4,
    fits=True,
    doubtful=False,
    measured=MEASURED,
)


def engine(used: float | None = 9.5, **plan: Any) -> EngineStatus:
    """With a budget of 10 GiB, so that its planned bar, with the context, is 10.5 GiB long."""
    size = None if used is None else int(used * GIB)
    return replace(EMBEDDING, budget_bytes=10 * GIB, used_bytes=size, memory_plan=replace(PLAN, **plan))


def share(gib: float, of: float = 10.5) -> Any:
    return pytest.approx(gib / of, abs=0.002)


async def drawn(page: Page, one: EngineStatus) -> dict[str, Any]:
    found: dict[str, Any] = await page.value(DRAW % json.dumps(asdict(one)))
    return found


async def test_the_plan_and_the_measured_lie_above_each_other_on_one_scale(page: Page) -> None:
    picture = await drawn(page, engine())
    assert picture["verdict"] == "fits, ± 0.25 GiB"
    planned, measured = picture["bars"]
    assert planned == [
        ["holds-weights", 0, share(2)],
        ["holds-graph", share(2), share(0.5)],
        ["holds-kv", share(2.5), share(6.5)],
        ["holds-step", share(9), share(1)],
        ["holds-context", share(10), share(0.5)],
    ]
    assert measured == [
        ["holds-weights", 0, share(2)],
        ["holds-graph", share(2), share(0.5)],
        ["holds-kv", share(2.5), share(6)],
        ["holds-rest", share(8.5), share(1)],
    ]
    assert picture["budgets"] == [share(10), share(10)]
    assert picture["error"] == [share(8.75), share(0.5)]
    assert picture["rows"] == [
        "weights\t2.0\t2.0",
        "CUDA graphs\t0.50\t0.50",
        "KV cache\t6.5 ± 0.25\t6.0",
        "one step\t1.0 ± 0.25\t1.0 together",
        "CUDA context\t0.50",
        "in all\t10.5\t9.5",
    ]
    assert picture["labels"] == [
        "planned, budget 10.0 GiB: weights 2.0 GiB; CUDA graphs 0.50 GiB; KV cache 6.5 GiB; "
        "one step 1.0 GiB; CUDA context 0.50 GiB",
        "measured, budget 10.0 GiB: weights 2.0 GiB; CUDA graphs 0.50 GiB; KV cache 6.0 GiB; "
        "everything else 1.0 GiB",
    ]


async def test_before_a_start_nothing_is_drawn_as_measured(page: Page) -> None:
    picture = await drawn(page, engine(None, measured=None))
    assert picture["bars"][1] == []
    assert picture["labels"][1] == "measured, budget 10.0 GiB: nothing known"
    assert picture["rows"][0] == "weights\t2.0\t–"
    assert picture["rows"][-1] == "in all\t10.5\t–"


async def test_what_does_not_fit_passes_the_budgets_end(page: Page) -> None:
    large = engine(None, weights_bytes=12 * GIB, kv_bytes=-GIB, fits=False, measured=None)
    picture = await drawn(page, large)
    assert picture["verdict"] == "3.5 GiB over its budget"
    assert picture["bars"][0][-2:] == [
        ["holds-step", share(12.5, of=14), share(1, of=14)],
        ["holds-context", share(13.5, of=14), share(0.5, of=14)],
    ]
    assert picture["budgets"][0] == share(10, of=14)


@pytest.mark.parametrize(
    ("plan", "verdict"),
    [
        ({"doubtful": True}, "doubtful, ± 0.25 GiB"),
        ({"bar_bytes": 0}, "fits"),
        ({"fits": False}, "KV cache too small"),
    ],
)
async def test_the_verdict_is_that_of_the_command(page: Page, plan: dict[str, Any], verdict: str) -> None:
    picture = await drawn(page, engine(**plan))
    assert picture["verdict"] == verdict
    assert (picture["error"] is None) == (plan.get("bar_bytes") == 0)


async def test_a_host_has_libraries_and_no_context(page: Page) -> None:
    host = engine(context_bytes=0, graph_bytes=0, measured=replace(MEASURED, graph_bytes=None))
    picture = await drawn(page, replace(host, device="host"))
    assert [row.split("\t")[0] for row in picture["rows"]] == ["weights", "KV cache", "libraries", "in all"]
    assert picture["rows"][2:] == ["libraries\t1.0 ± 0.25\t1.5", "in all\t9.5\t9.5"]


async def test_without_a_plan_there_is_no_picture(page: Page) -> None:
    assert (await drawn(page, replace(engine(), memory_plan=None)))["hidden"]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
async def test_the_picture_reads_well(page: Page, width: int, scheme: str) -> None:
    await drawn(page, engine(doubtful=True))
    await reads_well(page, width, scheme)
    shown = "getComputedStyle(document.querySelector('#devices tbody td:last-child')).display"
    assert await page.value(shown) == "table-cell"
