"""What the page shows, and lets be done, with which key."""

from __future__ import annotations

import asyncio

from tests.browser.acts import (
    ADMIN,
    API,
    FOCUSED,
    READY,
    STATES,
    STEERABLE,
    steer,
    text_of,
    use_key,
    write_keys,
)
from tests.browser.chromium import Page, browser_page
from tests.integration.daemon import Box, RunningDaemon

RESTART = "button[aria-label='restart embedding']"
POLLS = 2.5  # seconds in which a page that goes on asking would be noticed
ASKED = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/admin/')).length"


async def test_without_an_admins_key_engines_are_only_looked_at(page: Page) -> None:
    assert not await page.value(STEERABLE)
    assert await page.value(text_of("steer-note")) == (
        "Read-only. With an admin's key engines are started and stopped here."
    )
    await use_key(page, "wrong" * 4)
    await page.until(f"{text_of('steer-note')}.includes('the key that was given is not known')")
    assert not await page.value(STEERABLE)
    await use_key(page, ADMIN)
    await page.until(STEERABLE)
    assert await page.value(text_of("key-owner")) == "ana, admin"
    await page.click("#key-forget")
    await page.until(f"!({STEERABLE})")
    assert page.complaints == []


async def test_an_engine_is_restarted_after_it_was_asked_once_more(page: Page, daemon: RunningDaemon) -> None:
    await use_key(page, ADMIN)
    await page.until(STEERABLE)
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
    await steer(page, "restart", "embedding")
    await page.until(f'{text_of("events")}.includes("embedding restart requested: with ana\'s key")')
    await page.until(f"{STATES}[0] !== 'ready'")
    await page.until(READY)
    assert await asyncio.to_thread(daemon.leader, "embedding") != before
    await steer(page, "stop", "embedding")
    await page.until(f"{STATES}[0] === 'stopped'")
    await page.click("button[aria-label='start embedding']")  # ends nothing, so asks nothing
    await page.until(READY)
    assert page.complaints == []


async def test_where_keys_are_asked_for_it_waits_for_one_and_shows_what_that_may_see(box: Box) -> None:
    write_keys(box.folder / "keys", chat=API)
    write_keys(box.folder / "admins", ana=ADMIN)
    box.configure(top="keys: ./keys\nadmin_keys: ./admins")
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(f"{text_of('locked-why')}.startsWith('This memoria needs a key')")
        await asyncio.sleep(POLLS)
        assert await page.value(ASKED) == 1
        assert not await page.value("document.body.classList.contains('stale')")
        await use_key(page, "wrong" * 4)
        await page.until(f"{text_of('locked-why')}.startsWith('This memoria does not know the key')")
        await use_key(page, API)
        await page.until(f"{READY} && document.getElementById('locked').hidden")
        for place in ("log", "requests-none", "steer-note"):
            await page.until(f"{text_of(place)}.includes('the key “chat” is not an admin')")
        await page.look(1000, "light")  # a resize and a filter must not wipe that
        await page.value("document.getElementById('log-filter').dispatchEvent(new Event('input'))")
        await page.click("#log-follow")
        assert "is not an admin" in await page.value(text_of("log"))
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
        assert "name a file of them with admin_keys" in await page.value(text_of("steer-note"))
        assert await page.value("document.getElementById('key-form').hidden")  # no key would help
        assert page.complaints == []
    await asyncio.to_thread(daemon.stop)
