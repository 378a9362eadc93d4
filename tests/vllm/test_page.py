"""The page before real engines: it shows, follows and steers them, and its playground talks to them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from tests.browser.acts import (
    ADMIN,
    AT_MOST,
    CONTROLLABLE,
    FOCUSED,
    LOOKS,
    READY,
    choose,
    falls_and_comes_back,
    reads_well,
    tab_to,
    text_of,
    use_key,
)
from tests.browser.chromium import Page, browser_page
from tests.faults.report import Figure
from tests.faults.traffic import OfVllm, Traffic
from tests.faults.verdict import Verdict
from tests.vllm.daemon import PATIENCE, RealDaemon

CARD = "document.getElementById('engine-generation').innerText"


@pytest.fixture
async def page(daemon: RealDaemon) -> AsyncIterator[Page]:
    await asyncio.to_thread(daemon.wait_ready)
    async with browser_page(f"{daemon.url}/") as page:
        await page.until(READY)
        yield page
    await asyncio.to_thread(daemon.wait_ready)


async def test_the_page_shows_real_engines_and_streams_from_them(page: Page) -> None:
    await page.until(f"{text_of('health')} === 'healthy: 2 of 2 engines ready'")
    await choose(page, "try-model", "tiny-generation")
    await page.click("#try-send")
    await page.until(f"{text_of('try-note')}.startsWith('done in')")
    assert re.search(r"first of (\d+) chunks", await page.value(text_of("try-note")))
    assert await page.value(f"{text_of('try-answer')}.length") > 0
    await page.until(f"{text_of('requests')}.includes('/v1/completions')")
    await page.until(f"/KV cache\\s+\\d+ %/.test({CARD})")
    assert page.complaints == []


async def test_a_killed_engine_is_seen_to_fall_within_a_second_and_to_come_back(
    page: Page, daemon: RealDaemon, figure: Figure
) -> None:
    with Traffic(daemon.port, OfVllm(), streams=1) as traffic:
        await page.until(f"{text_of('requests')}.includes('/v1/completions')")
        took = await falls_and_comes_back(
            page, "generation", lambda: int(daemon.status()["generation"]["pid"]), PATIENCE
        )
    assert traffic.causes(Verdict.WRONG) == {}
    figure(1, "leader killed to seen on the page, vLLM", min(took), "s")
    assert min(took) < AT_MOST
    await page.until(f"{CARD}.includes('last exit: ')")
    await page.until(f"{text_of('events')}.includes('generation has ended and will be started again')")
    await page.until(READY)
    assert page.complaints == []


async def test_an_engine_is_restarted_with_an_admins_key_and_the_keyboard_alone(
    page: Page, daemon: RealDaemon
) -> None:
    """The one that was killed above: asking for it pardons its crashes, so later tests wait no longer."""
    before = await asyncio.to_thread(daemon.status)
    assert not await page.value(CONTROLLABLE)
    await tab_to(page, "key")
    await page.call("Input.insertText", text=ADMIN)
    await page.press("Enter")
    await page.until(CONTROLLABLE)
    await tab_to(page, "restart generation")
    await page.press("Enter")
    assert await page.value(FOCUSED) == "confirm: restart generation"
    await page.press("Enter")
    await page.until(f'{text_of("events")}.includes("generation restart requested: with ana\'s key")')
    await page.until(f"{text_of('health')} === 'degraded: 1 of 2 engines ready'")
    await page.until(READY, PATIENCE)
    after = await asyncio.to_thread(daemon.status)
    assert after["generation"]["pid"] != before["generation"]["pid"]
    assert after["embedding"]["pid"] == before["embedding"]["pid"]
    assert page.complaints == []


async def test_it_reads_at_every_width_in_light_and_dark(page: Page) -> None:
    await use_key(page, ADMIN)
    await page.until(CONTROLLABLE)
    await page.until(f"{text_of('log')}.length > 0")
    for width, scheme in LOOKS:
        await reads_well(page, width, scheme)
    assert page.complaints == []
