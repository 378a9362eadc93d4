"""Actions on the page, and expressions for its state."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from tests.browser.chromium import PATIENCE, Page

ADMIN, API = "a" * 32, "k" * 32
STATES = "[...document.querySelectorAll('article .state')].map((state) => state.dataset.state)"
READY = f"{STATES}.join() === 'ready,ready'"
CONTROLLABLE = "!document.querySelector('#engine-embedding .control').hidden"
FOCUSED = "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
LOOKS = tuple((width, scheme) for width in (390, 1440) for scheme in ("light", "dark"))
AT_MOST = 1.0  # seconds from a kill to the page that shows it
TRIES = 3  # on a machine that is busy with something else


def write_keys(file: Path, **keys: str) -> None:
    file.write_text("".join(f"{name}: {key}\n" for name, key in keys.items()))
    file.chmod(0o600)


def text_of(element: str) -> str:
    """JavaScript for the text of the element with this id."""
    return f"document.getElementById('{element}').textContent"


async def use_key(page: Page, key: str) -> None:
    await page.value(f"document.getElementById('key').value = '{key}'")
    await page.click("#key-form [type=submit]")


async def choose(page: Page, field: str, value: str) -> None:
    """In a select element, as a person would."""
    element = f"document.getElementById('{field}')"
    await page.value(f"({element}.value = {json.dumps(value)}, {element}.dispatchEvent(new Event('change')))")


async def control(page: Page, action: str, engine: str) -> None:
    """Press the button, then confirm."""
    await page.click(f"button[aria-label='{action} {engine}']")
    await page.click(f"button[aria-label='confirm: {action} {engine}']")


async def falls_and_comes_back(
    page: Page, engine: str, victim: Callable[[], int], patience: float = PATIENCE
) -> list[float]:
    """Kills a process of the engine: seconds until the page shows it. Once more where that took too long."""
    took: list[float] = []
    while len(took) < TRIES and not any(seconds < AT_MOST for seconds in took):
        await _note_changes(page, engine)
        pid = victim()
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        took.append(await _seconds_until_seen(page, killed))
        await page.until("window.changes.at(-1)[1] === 'ready'", patience)
    print(f"seen {', '.join(f'{seconds * 1000:.0f} ms' for seconds in took)} after the kill")
    return took


async def _note_changes(page: Page, engine: str) -> None:
    """From now on `window.changes` holds the states that the engine was shown in, each with its Unix time."""
    state = f"document.querySelector('#engine-{engine} .state')"
    await page.value(
        "(window.changes = [], new MutationObserver(() => window.changes.push("
        f"[(performance.timeOrigin + performance.now()) / 1000, {state}.dataset.state]))"
        f".observe({state}, {{attributes: true}}), 0)"
    )


async def _seconds_until_seen(page: Page, since: float) -> float:
    """From `since` (Unix time) until the page first showed the engine in a state that is not `ready`."""
    fallen = "window.changes.find(([, state]) => state !== 'ready')"
    await page.until(fallen)
    at: float = (await page.value(fallen))[0]
    assert since <= at <= time.time()
    return at - since


async def reads_well(page: Page, width: int, scheme: str) -> None:
    """Fails where something is wider than the page, or where axe-core finds a grave problem."""
    await page.look(width, scheme)
    assert await page.value("document.documentElement.scrollWidth") <= width
    assert await grave_problems(page) == []


async def grave_problems(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds: rule and element."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    await page.value(axe + ";0")
    found = await page.value("axe.run().then((report) => report.violations)")
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], node["html"]) for one in grave for node in one["nodes"]]


async def reached_by_tab(page: Page, times: int = 60) -> set[str]:
    """Ids, or labels, of what has had the focus."""
    await page.value("document.activeElement.blur()")
    reached = set()
    for _ in range(times):
        await page.press("Tab")
        reached.add(await page.value(FOCUSED))
    return {name for name in reached if name}


async def tab_to(page: Page, name: str, at_most: int = 60) -> None:
    """By its id or label."""
    for _ in range(at_most):
        if await page.value(FOCUSED) == name:
            return
        await page.press("Tab")
    raise AssertionError(f"Tab never came to {name}")
