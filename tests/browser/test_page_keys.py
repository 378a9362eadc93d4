"""What the page shows and allows, by key."""

from __future__ import annotations

import asyncio

from tests.browser.acts import (
    ADMIN,
    API,
    CONTROLLABLE,
    FOCUSED,
    READY,
    STATES,
    control,
    text_of,
    use_key,
    write_keys,
)
from tests.browser.chromium import Page, browser_page
from tests.integration.daemon import Box, RunningDaemon

RESTART = "button[aria-label='restart embedding']"
POLLS = 2.5  # seconds in which a page that goes on asking would be noticed
ADMIN_REQUESTS = (
    "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/admin/')).length"
)


async def test_without_an_admins_key_engines_are_only_looked_at(page: Page) -> None:
    assert not await page.value(CONTROLLABLE)
    assert await page.value(text_of("control-note")) == (
        "Read-only. Starting and stopping engines needs an admin key."
    )
    await use_key(page, "wrong" * 4)
    await page.until(f"{text_of('control-note')}.includes('the key entered is not known')")
    assert not await page.value(CONTROLLABLE)
    await use_key(page, ADMIN)
    await page.until(CONTROLLABLE)
    assert await page.value(text_of("key-owner")) == "ana, admin"
    await page.click("#key-forget")
    await page.until(f"!({CONTROLLABLE})")
    assert page.complaints == []


async def test_an_engine_is_restarted_after_a_confirmation(page: Page, daemon: RunningDaemon) -> None:
    await use_key(page, ADMIN)
    await page.until(CONTROLLABLE)
    before = await asyncio.to_thread(daemon.leader, "embedding")
    await page.value(f'document.querySelector("{RESTART}").focus()')
    await page.press("Enter")
    assert await page.value(FOCUSED) == "confirm: restart embedding"
    await page.press("Escape")
    assert await page.value(FOCUSED) == "restart embedding"
    await page.press("Enter")
    await page.press("Tab")
    assert await page.value(FOCUSED) == "cancel: restart embedding"
    await page.press("Enter")
    assert await asyncio.to_thread(daemon.leader, "embedding") == before
    await control(page, "restart", "embedding")
    await page.until(f'{text_of("events")}.includes("embedding restart requested: with ana\'s key")')
    await page.until(f"{STATES}[0] !== 'ready'")
    await page.until(READY)
    assert await asyncio.to_thread(daemon.leader, "embedding") != before
    await control(page, "stop", "embedding")
    await page.until(f"{STATES}[0] === 'stopped'")
    await page.click("button[aria-label='start embedding']")  # ends nothing, so needs no confirmation
    await page.until(READY)
    assert page.complaints == []


async def test_where_keys_are_required_it_waits_for_one_and_shows_what_that_may_see(box: Box) -> None:
    write_keys(box.folder / "keys", chat=API)
    write_keys(box.folder / "admins", ana=ADMIN)
    box.configure(top="keys: ./keys\nadmin_keys: ./admins")
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(f"{text_of('locked-why')}.startsWith('An API key shows the state')")
        await asyncio.sleep(POLLS)
        assert await page.value(ADMIN_REQUESTS) == 1
        assert not await page.value("document.body.classList.contains('stale')")
        await use_key(page, "wrong" * 4)
        await page.until(f"{text_of('locked-why')}.startsWith('The key entered is not known')")
        await use_key(page, API)
        await page.until(f"{READY} && document.getElementById('locked').hidden")
        for place in ("log", "requests-none", "control-note"):
            await page.until(f"{text_of(place)}.includes('the key “chat” is not an admin key')")
        await page.look(1000, "light")  # a resize and a filter must not wipe that
        await page.value("document.getElementById('log-filter').dispatchEvent(new Event('input'))")
        await page.click("#log-follow")
        assert "is not an admin key" in await page.value(text_of("log"))
        await page.click("#try-send")
        await page.until(f"{text_of('try-note')}.includes('dimensions')")
        await page.click("#key-forget")
        await page.until("!document.getElementById('locked').hidden && document.querySelector('main').hidden")
        await use_key(page, ADMIN)
        await page.until(f"{text_of('log')}.includes('startup complete')")
        await page.until(f"{text_of('requests')}.includes('chat')")
        assert page.complaints == []
    await asyncio.to_thread(daemon.stop)


async def test_where_there_are_no_admin_keys_it_says_how_to_have_some(box: Box) -> None:
    box.configure()
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(READY)
        assert "set admin_keys in memoria.yaml to a file of keys" in await page.value(text_of("control-note"))
        assert await page.value("document.getElementById('key-form').hidden")  # no key would help
        assert page.complaints == []
    await asyncio.to_thread(daemon.stop)
