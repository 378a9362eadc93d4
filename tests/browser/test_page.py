"""The page in a real browser, before a running daemon with stub engines."""

from __future__ import annotations

import gzip
import os

import pytest

from memoria.admin.api.page import STATIC
from tests.browser.acts import ADMIN, CONTROLLABLE, LOOKS, reached_by_tab, reads_well, text_of, use_key
from tests.browser.chromium import Page
from tests.integration.daemon import RunningDaemon
from tests.integration.http_client import ask

BUNDLE_BYTES = 150_000
LONGEST_MODULE = 150  # lines
LABELS = "[...document.querySelectorAll('#engine-%s .spark')].map((line) => line.ariaLabel.split(' in ')[0])"


async def test_it_shows_engines_memory_events_and_logs_without_a_complaint(page: Page) -> None:
    await page.until(f"{text_of('log')}.includes('startup complete')")
    await page.until(f"{text_of('events')}.includes('generation is ready')")
    text = await page.value("document.body.innerText")
    assert "healthy: 2 of 2 engines ready" in text
    assert "29.0 of 30.0 GiB" in text
    assert f"pid {os.getpid()}" in text
    assert page.complaints == []


async def test_what_is_not_known_is_a_dash(page: Page) -> None:
    figures = "document.querySelectorAll('#engine-generation :is(.large > div, dl > div)')"
    shown = await page.value(
        f"[...{figures}].map((figure) => figure.innerText)"
    )  # this engine has had no request
    assert any(text.startswith("TTFT p95\n–") for text in shown)
    assert "answer p50 / p95\n– / –" in shown


async def test_an_unknown_kv_usage_is_a_dash_over_an_empty_bar(page: Page) -> None:
    drawn = await page.value(
        """
        import('/page/engines.js').then(async ({ drawEngines }) => {
          const status = await (await fetch('/admin/status')).json();
          status.engines[0].kv_usage = null;
          drawEngines(status, new Map(), { control() {}, allowed: false });
          const meter = document.querySelector('#engine-embedding .meter');
          const { width } = meter.querySelector('.track i').style;
          return [meter.textContent.startsWith('KV cache–'), meter.classList.contains('unknown'), width];
        })
        """
    )
    assert drawn == [True, True, "0px"]


async def test_an_engine_that_will_be_tried_again_says_why_it_fell_and_when_that_will_be(page: Page) -> None:
    drawn = await page.value(
        """
        import('/page/engines.js').then(async ({ drawEngines }) => {
          const status = await (await fetch('/admin/status')).json();
          const retry_at = status.at + 29.5;
          const fallen = { state: 'backoff', detail: 'It fell', hint: 'Hold it', retry_at };
          Object.assign(status.engines[0], fallen);
          drawEngines(status, new Map(), { control() {}, allowed: false });
          const shown = document.querySelectorAll('#engine-embedding :is(.state, .why)');
          return [...shown].map((one) => one.innerText);
        })
        """
    )
    assert drawn == ["backoff\nretry in 29 s", "It fell", "Hold it"]


async def test_a_line_has_a_gap_where_nothing_was_known_and_is_not_drawn_where_nothing_ever_was(
    page: Page,
) -> None:
    drawn = await page.value(
        """
        import('/page/history.js').then(({ drawLine, makeLine }) => {
          const part = makeLine('tokens/s');
          const path = () => part.line.getAttribute('d');
          const highest = drawLine(part, [[70, 4], [75, null], [80, null], [90, 8], [95, 0]], 100, String);
          const gaps = path().split('M').length - 2;
          return [highest, gaps, drawLine(part, [[90, null]], 100, String), path(), part.element.ariaLabel];
        })
        """
    )
    assert drawn == [8, 1, None, "", "tokens/s in the last five minutes: not known"]


async def test_the_last_minutes_are_there_when_it_opens(page: Page, daemon: RunningDaemon) -> None:
    for _ in range(5):
        answer = daemon.ask("POST", "/v1/embeddings", {"model": "embedder", "input": "a"})
        assert answer.status == 200
    line = "document.querySelector('#engine-embedding .spark .line')?.getAttribute('d').includes('L')"
    await page.until(line)
    await page.call("Page.reload")
    await page.until("performance.timeOrigin > 0 && document.querySelector('article') !== null")
    await page.until(line)
    assert await page.value("performance.now()") < 4000  # no two samples were taken since
    assert await page.value(LABELS % "generation") == ["requests/s", "tokens/s", "TTFT p95"]
    assert await page.value(LABELS % "embedding") == ["requests/s", "answer p95"]


async def test_figures_change_in_place_and_only_news_is_announced(page: Page) -> None:
    await page.value(
        """
        window.kept = [...document.querySelectorAll('.gpu .segment, article dd, .legend li')];
        window.spoken = 0;
        window.before = document.getElementById('uptime').textContent;
        new MutationObserver(() => { window.spoken += 1; }).observe(
          document.getElementById('health'), { subtree: true, childList: true, characterData: true });
        0
        """
    )
    await page.until(f"{text_of('uptime')} !== window.before")
    assert await page.value("window.kept.length > 10 && window.kept.every((element) => element.isConnected)")
    assert await page.value("window.spoken") == 0


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
async def test_it_reads_at_every_width_in_light_and_dark(page: Page, width: int, scheme: str) -> None:
    await reads_well(page, width, scheme)
    assert page.complaints == []


async def test_three_engines_leave_no_hole(page: Page) -> None:
    cards = "document.getElementById('engines')"
    await page.value(f"{cards}.append(document.querySelector('article').cloneNode(true))")
    place = f"{cards}.getBoundingClientRect().right"
    last = "[...document.querySelectorAll('article')].at(-1).getBoundingClientRect().right"
    for width in (700, 1000, 1440):
        await page.look(width, "light")
        assert abs(await page.value(f"{place} - {last}")) < 1


async def test_everything_can_be_reached_with_the_keyboard(page: Page) -> None:
    await use_key(page, ADMIN)
    await page.until(CONTROLLABLE)
    assert await reached_by_tab(page) >= {
        *("key-forget", "restart embedding", "stop generation", "events", "log-filter", "log-follow", "log"),
        *("try-model", "try-route", "try-text", "try-send", "try-curl"),
    }
    await page.value("document.querySelector('[role=tab][aria-selected=true]').focus()")
    await page.press("ArrowRight")
    assert await page.value("document.activeElement.textContent") == "generation"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await page.value(outline) == "solid"
    await page.value("document.getElementById('try-curl').focus()")
    await page.press("Enter")
    await page.until(f"{text_of('try-answer')}.startsWith('curl ')")


async def test_a_text_is_never_read_as_html(page: Page, daemon: RunningDaemon) -> None:
    with (daemon.box.folder / "logs/embedding.log").open("a") as log:
        log.write("<img src=x onerror=\"document.title='broken'\">\n")
    await page.until(f"{text_of('log')}.includes('<img src=x')")
    assert await page.value("document.querySelector('#log img') === null")
    assert await page.value("document.title") == "memoria"


def test_it_is_small_and_asks_no_other_host() -> None:
    bundle = b"".join(file.read_bytes() for file in sorted(STATIC.iterdir()))
    assert len(gzip.compress(bundle)) < BUNDLE_BYTES
    hosts = bundle.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"http://" not in hosts
    assert b"https://" not in hosts
    modules = {file.name: len(file.read_text().splitlines()) for file in STATIC.glob("*.js")}
    assert {name: lines for name, lines in modules.items() if lines > LONGEST_MODULE} == {}


def test_it_says_what_a_page_of_it_may_do(daemon: RunningDaemon) -> None:
    answer = ask(daemon.box.ports.main, "GET", "/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    module = ask(daemon.box.ports.main, "GET", "/page/main.js")
    assert module.headers["content-type"].startswith("text/javascript")
    assert ask(daemon.box.ports.main, "GET", "/page/../app.py").status == 404
    assert ask(daemon.box.ports.embedding, "GET", "/").status == 404
