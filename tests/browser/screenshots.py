"""The README's pictures of the page: `python -m tests.browser.screenshots URL FOLDER`, of a memoria that runs
and is asked something meanwhile."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.browser.chromium import browser_page

LINE = "path.getAttribute('d')?.length > 120"  # enough looks to draw one
HEIGHT = 1640  # pixels: all of the page where it is wide


async def take(url: str, folder: Path) -> None:
    async with browser_page(url) as page:
        await page.until("document.querySelector('article .state')")
        await page.until("document.getElementById('log').textContent.length > 0")
        await page.until(f"[...document.querySelectorAll('.spark path')].every((path) => {LINE})")
        for width, scheme in ((1440, "light"), (390, "dark")):
            await page.look(width, scheme)
            await page.screenshot(folder / f"page-{width}-{scheme}.webp", HEIGHT)


if __name__ == "__main__":
    asyncio.run(take(sys.argv[1], Path(sys.argv[2])))
