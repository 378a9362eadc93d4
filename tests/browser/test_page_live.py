"""The page follows what happens: a kill, a reload, a connection that is lost or falls silent."""

from __future__ import annotations

import asyncio
import time

import psutil

from tests.browser.acts import AT_MOST, READY, falls_and_comes_back, text_of
from tests.browser.chromium import PATIENCE, Page, browser_page
from tests.browser.wire import wire
from tests.integration.daemon import Box, RunningDaemon

ENGINES = "[...document.querySelectorAll('article')].map((card) => card.id).join()"
TABS = "[...document.querySelectorAll('#log-tabs [role=tab]')].map((tab) => tab.textContent).join()"
MODELS = "[...document.querySelectorAll('#try-model option')].map((option) => option.value).join()"
STALE = "document.body.classList.contains('stale')"
STREAMS = 2  # events and a log


async def test_a_killed_engine_is_seen_to_fall_within_a_second_and_to_come_back(
    page: Page, daemon: RunningDaemon
) -> None:
    took = await falls_and_comes_back(page, "embedding", lambda: daemon.core("embedding"))
    assert min(took) < AT_MOST
    await page.until("document.getElementById('engine-embedding').innerText.includes('last exit: ')")
    await page.until(f"{text_of('events')}.includes('embedding has ended and will be started again')")
    assert page.complaints == []


async def test_after_a_reload_what_is_gone_is_gone_and_what_is_new_is_there(box: Box) -> None:
    box.configure()
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(READY)
        config = box.file.read_text().replace("  generation:", "  writing:").replace("0.60", "0.50")
        config = config.replace("./models/embedder", "./models/embedder\n    served_model_name: [one, two]")
        box.file.write_text(config)
        reloaded = await asyncio.to_thread(box.call, "reload")
        assert reloaded.returncode == 0, reloaded.stderr
        await page.until(f"{ENGINES} === 'engine-embedding,engine-writing'")
        await page.until(f"{TABS} === 'embedding,writing'")
        await page.until(f"{MODELS} === 'one,two,writer'")
        await page.until("document.querySelector('#engine-embedding .models').textContent === 'one, two'")
        await page.until("document.querySelector('.legend').textContent.includes('writing')")
        assert "generation" not in await page.value("document.querySelector('.legend').textContent")
        await page.until(READY)
        assert page.complaints == []
    await asyncio.to_thread(daemon.stop)


async def test_it_turns_grey_when_memoria_ends_and_comes_back_with_it(box: Box) -> None:
    box.configure()
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(READY)
        await asyncio.to_thread(daemon.stop)
        await page.until(STALE)
        assert await page.value(text_of("health")) == "no connection to memoria"
        again = box.start()
        await asyncio.to_thread(again.until_ready)
        await page.until(f"!{STALE} && {READY}")
        heard = f"{text_of('events')}.split('memoria listening: ').length - 1"
        assert await page.value(heard) == 1  # the new one's events alone
        await page.until(f"{text_of('log')}.includes('startup complete')")
        await asyncio.to_thread(again.stop)


async def test_a_connection_that_falls_silent_is_given_up_for_another(daemon: RunningDaemon) -> None:
    port = daemon.box.ports.main
    async with wire(port) as line, browser_page(f"http://127.0.0.1:{line.port}/") as page:
        await page.until(READY)
        line.fall_silent()
        await page.until(STALE)
        await page.until(f"!{STALE}")
        with (daemon.box.folder / "logs/embedding.log").open("a") as log:
            log.write("said after the silence\n")
        await page.until(f"{text_of('log')}.includes('said after the silence')")
        assert page.complaints == []


async def test_a_hidden_tab_holds_no_stream(page: Page, daemon: RunningDaemon) -> None:
    await page.until(f"{text_of('log')}.includes('startup complete')")
    before = connections(daemon)
    await set_hidden(page, hidden=True)
    deadline = time.monotonic() + PATIENCE
    while connections(daemon) > before - STREAMS:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await set_hidden(page, hidden=False)
    await page.until(f"{text_of('events')}.includes('generation is ready')")
    await page.until(f"{text_of('log')}.includes('startup complete')")
    assert not await page.value(STALE)
    assert page.complaints == []


async def set_hidden(page: Page, *, hidden: bool) -> None:
    value = "true" if hidden else "false"
    await page.value(
        f"(Object.defineProperty(document, 'hidden', {{value: {value}, configurable: true}}), "
        "document.dispatchEvent(new Event('visibilitychange')))"
    )


def connections(daemon: RunningDaemon) -> int:
    """With the daemon's main port; the browser keeps one for the next request, too."""
    found = psutil.Process(daemon.pid).net_connections(kind="tcp")
    return sum(one.status == "ESTABLISHED" and one.laddr[1] == daemon.box.ports.main for one in found)
