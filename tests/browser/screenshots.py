"""Pictures of the page: `python -m tests.browser.screenshots URL FOLDER`, of a memoria that runs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.browser.chromium import browser_page


async def take(url: str, folder: Path) -> None:
    async with browser_page(url) as page:
        await page.until("document.querySelector('article .state')")
        await page.until("document.getElementById('log').textContent.length > 0")
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                await page.look(width, scheme)
                await page.screenshot(folder / f"page-{width}-{scheme}.png")


if __name__ == "__main__":
    asyncio.run(take(sys.argv[1], Path(sys.argv[2])))
