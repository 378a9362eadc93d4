"""The page's log: tabs, filter, and the end in sight until the reader scrolls up."""

from __future__ import annotations

from tests.browser.acts import text_of
from tests.browser.chromium import Page
from tests.integration.daemon import RunningDaemon

LOG = text_of("log")
FOLLOWS = "document.getElementById('log-follow').checked"
AT_END = (
    "(({ scrollTop, clientHeight, scrollHeight }) => scrollTop + clientHeight >= scrollHeight - 4)"
    "(document.getElementById('log'))"
)


def write(daemon: RunningDaemon, *lines: str, engine: str = "embedding") -> None:
    with (daemon.box.folder / f"logs/{engine}.log").open("a") as log:
        log.writelines(f"{line}\n" for line in lines)


async def test_it_follows_the_end_until_the_reader_scrolls_up(page: Page, daemon: RunningDaemon) -> None:
    write(daemon, *(f"line {number} of many" for number in range(100)))
    await page.until(f"{LOG}.includes('line 99 of many') && {AT_END}")
    await page.value("document.getElementById('log').scrollTop = 0")
    await page.until(f"!{FOLLOWS}")
    write(daemon, "written while scrolled up")
    await page.until(f"{LOG}.includes('written while scrolled up')")
    assert await page.value("document.getElementById('log').scrollTop") == 0
    await page.click("#log-follow")
    await page.until(AT_END)
    write(daemon, "written while following")
    await page.until(f"{LOG}.includes('written while following') && {AT_END}")
    assert await page.value(FOLLOWS)


async def test_a_selection_stays_while_lines_are_added(page: Page, daemon: RunningDaemon) -> None:
    write(daemon, "a line to be copied")
    await page.until(f"{LOG}.includes('a line to be copied')")
    await page.value(
        "getSelection().selectAllChildren([...document.querySelectorAll('#log span')]"
        ".find((line) => line.textContent.includes('to be copied')))"
    )
    write(daemon, "and one more")
    await page.until(f"{LOG}.includes('and one more')")
    assert (await page.value("getSelection().toString()")).strip() == "a line to be copied"


async def test_a_filter_shows_what_has_its_text_in_the_past_and_from_now_on(
    page: Page, daemon: RunningDaemon
) -> None:
    write(daemon, "apples and pears", "plums", "ERROR: no APPLES left")
    await page.until(f"{LOG}.includes('no APPLES left')")
    await page.value(
        "(document.getElementById('log-filter').value = 'Apples', "
        "document.getElementById('log-filter').dispatchEvent(new Event('input')))"
    )
    assert await page.value(LOG) == "apples and pears\nERROR: no APPLES left\n"
    assert await page.value("document.querySelector('#log .bad').textContent") == "ERROR: no APPLES left\n"
    write(daemon, "cherries", "more apples")
    await page.until(f"{LOG}.endsWith('more apples\\n')")
    assert "cherries" not in await page.value(LOG)


async def test_another_tab_shows_another_engines_log_alone(page: Page, daemon: RunningDaemon) -> None:
    await page.until(f"{LOG}.includes('models/embedder')")
    await page.click("#log-tabs button:nth-child(2)")
    await page.until(f"{LOG}.includes('models/writer')")
    write(daemon, "not to be seen")
    write(daemon, "to be seen", engine="generation")
    await page.until(f"{LOG}.includes('\\nto be seen')")
    assert "models/embedder" not in await page.value(LOG)
    assert "not to be seen" not in await page.value(LOG)
