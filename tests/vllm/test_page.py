"""The page before real engines: it shows them, and its playground talks to them."""

from __future__ import annotations

from tests.browser.chromium import browser_page
from tests.vllm.daemon import RealDaemon


async def test_the_page_shows_real_engines_and_streams_from_them(daemon: RealDaemon) -> None:
    async with browser_page(f"{daemon.url}/") as page:
        await page.until("document.getElementById('summary').textContent.includes('2 of 2 engines ready')")
        await page.value("document.getElementById('try-model').value = 'tiny-generation'")
        await page.value("document.getElementById('try-model').dispatchEvent(new Event('change'))")
        await page.click("#try-send")
        await page.until("document.getElementById('try-note').textContent.startsWith('done in')")
        assert await page.value("document.getElementById('try-answer').textContent.length") > 0
        await page.until("document.getElementById('requests').textContent.includes('/v1/completions')")
        await page.until("/KV cache\\s+\\d+ %/.test(document.getElementById('engine-generation').innerText)")
        assert page.complaints == []
