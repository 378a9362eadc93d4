"""The bar of a device's memory: everything to one scale, nothing capped, nothing unknown drawn as known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from memoria.admin.status.status import DeviceStatus, EngineStatus, OtherProcess
from memoria.text import GIB
from tests.browser.chromium import Page
from tests.unit.status_examples import EMBEDDING, GENERATION

WIDTH = 1000  # pixels, of a bar within its borders
DRAW = """
import('/page/devices.js').then(({ drawDevices }) => {
  const place = document.createElement('div');
  document.getElementById('devices').replaceChildren(place);
  drawDevices(place, %s, new Map([['embedding', 'e0'], ['generation', 'e1']]));
  const bar = place.querySelector('.gpu');
  bar.style.width = '1002px';
  for (const fill of bar.querySelectorAll('i')) fill.style.transition = 'none';
  const left = bar.getBoundingClientRect().left + 1;
  const box = (element) => {
    const { x, width } = element.getBoundingClientRect();
    return [x - left, width];
  };
  const over = bar.querySelector('.over');
  return {
    segments: [...bar.querySelectorAll('.segment')].map((one) => [one.className, ...box(one)]),
    used: [...bar.querySelectorAll('.engine i')].map((one) => box(one)[1]),
    budgets: [...bar.querySelectorAll('.engine u')].map((one) => box(one)[1]),
    limit: box(bar.querySelector('.limit'))[0],
    over: over.hidden ? null : box(over),
    legend: [...place.querySelectorAll('li')].map((one) => one.textContent),
    label: bar.getAttribute('aria-label'),
    limitLabel: place.querySelector('.limit-label').textContent,
  };
})
"""


def gib(amount: float) -> int:
    return int(amount * GIB)


def pixels(amount: float) -> Any:
    return pytest.approx(amount, abs=0.1)


def device(used: float | None, *others: OtherProcess, free: float | None = None) -> DeviceStatus:
    """Of 100 GiB, so that a GiB is ten pixels wide."""
    if used is None:
        return DeviceStatus("gpu 0", "Stub", gib(100), gib(95), None, None, others)
    left = 100 - used if free is None else free
    return DeviceStatus("gpu 0", "Stub", gib(100), gib(95), gib(used), gib(left), others)


def engine(one: EngineStatus, budget: float, used: float | None, *, runs: bool = True) -> EngineStatus:
    size = None if used is None else gib(used)
    return replace(one, budget_bytes=gib(budget), used_bytes=size, pid=one.pid if runs else None)


async def drawn(page: Page, on: DeviceStatus, *engines: EngineStatus) -> dict[str, Any]:
    status = {"devices": [asdict(on)], "engines": [asdict(one) for one in engines]}
    found: dict[str, Any] = await page.value(DRAW % json.dumps(status))
    return found


async def test_use_budgets_others_and_the_limit_are_to_scale(page: Page) -> None:
    other = OtherProcess(4711, "ana", "python train.py", gib(4))
    bar = await drawn(page, device(72, other), engine(EMBEDDING, 30, 20), engine(GENERATION, 50, 48))
    assert bar["segments"] == [
        ["segment engine e0 use-known", 0, pixels(300)],
        ["segment engine e1 use-known", pixels(300), pixels(500)],
        ["segment other", pixels(800), pixels(40)],
    ]
    assert bar["used"] == [pixels(200), pixels(480)]
    assert bar["limit"] == pixels(950)
    assert bar["limitLabel"] == "limit"
    assert bar["over"] is None
    assert bar["legend"] == [
        "embedding 20.0 of 30.0 GiB",
        "generation 48.0 of 50.0 GiB",
        "pid 4711 ana python train.py 4.0 GiB",
        "free 28.0 GiB",
        "limit of all budgets 95.0 GiB",
    ]
    assert bar["label"] == (
        "gpu 0, 100.0 GiB: embedding 20.0 of 30.0 GiB; generation 48.0 of 50.0 GiB; others 4.0 GiB; "
        "free 28.0 GiB; limit of all budgets 95.0 GiB"
    )


async def test_others_are_hatched_and_an_engines_use_is_solid(page: Page) -> None:
    await drawn(page, device(24, OtherProcess(1, None, "python", gib(4))), engine(EMBEDDING, 30, 20))
    background = "getComputedStyle(document.querySelector('.gpu %s')).backgroundImage"
    assert "repeating-linear-gradient(45deg" in await page.value(background % ".other")
    assert await page.value(background % ".engine i") == "none"


async def test_use_beyond_a_budget_goes_beyond_its_outline(page: Page) -> None:
    bar = await drawn(page, device(83), engine(EMBEDDING, 30, 33), engine(GENERATION, 50, 50))
    assert bar["used"][0] == pixels(330)
    assert bar["budgets"][0] == pixels(300)
    assert bar["segments"][1][1] == pixels(330)
    assert bar["legend"][0] == "embedding 33.0 of 30.0 GiB, 3.0 GiB outside its budget"


async def test_budgets_and_others_above_the_whole_keep_the_scale_and_pass_its_end(page: Page) -> None:
    other = OtherProcess(1, "ana", "python", gib(35))
    engines = engine(EMBEDDING, 30, 30), engine(GENERATION, 60, None, runs=False)
    bar = await drawn(page, device(65, other), *engines)
    per_gib = WIDTH / 125
    assert bar["segments"][1][0] == "segment engine e1 use-none"
    assert bar["segments"][2][1:] == [pixels(90 * per_gib), pixels(35 * per_gib)]
    assert bar["limit"] == pixels(95 * per_gib)
    assert bar["over"] == [pixels(100 * per_gib), pixels(25 * per_gib)]
    assert "generation not running, budget 60.0 GiB" in bar["legend"]
    assert "25.0 GiB over capacity" in bar["legend"]


async def test_use_that_is_not_known_is_drawn_as_such(page: Page) -> None:
    bar = await drawn(page, device(None), engine(EMBEDDING, 30, None), engine(GENERATION, 60, 50))
    assert bar["segments"][0][0] == "segment engine e0 use-unknown"
    assert bar["used"][0] == 0
    assert "embedding – of 30.0 GiB, use not known" in bar["legend"]
    assert "free –" in bar["legend"]
    assert "others –" in bar["label"]


async def test_what_the_driver_reserves_and_what_it_does_not_name_is_told_apart(page: Page) -> None:
    named = OtherProcess(7, None, "Xorg", gib(3))
    on = device(60, named, free=38)
    bar = await drawn(page, on, engine(EMBEDDING, 30, 30), engine(GENERATION, 40, 20))
    kinds = [(name, width) for name, _, width in bar["segments"][2:]]
    assert kinds == [
        ("segment other", pixels(30)),
        ("segment unnamed", pixels(70)),
        ("segment reserved", pixels(20)),
    ]
    assert "others, not named by the driver 7.0 GiB" in bar["legend"]
    assert "reserved by the driver 2.0 GiB" in bar["legend"]
    assert "others 10.0 GiB; reserved 2.0 GiB; free 38.0 GiB" in bar["label"]


async def test_small_processes_are_one_group_that_names_their_commands(page: Page) -> None:
    small = [OtherProcess(10 + n, "ana", "/usr/bin/python job.py", gib(0.5)) for n in range(6)]
    more = [OtherProcess(30 + n, "root", "Xorg", gib(0.4)) for n in range(2)]
    large = OtherProcess(5, "ben", "python train.py", gib(20))
    on = device(23.8, *small, large, *more)
    bar = await drawn(page, on, engine(EMBEDDING, 30, None, runs=False))
    assert bar["legend"][1:3] == [
        "pid 5 ben python train.py 20.0 GiB",
        "8 others 3.8 GiB (python ×6, Xorg ×2)",
    ]
