"""The page in a real browser, before a running daemon with stub engines."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from memoria.admin.page import STATIC
from memoria.text import GIB
from tests.browser.chromium import Page, browser_page
from tests.integration.daemon import Box, RunningDaemon
from tests.integration.http_client import ask
from tests.stub_nvml import StubProcess

ADMIN, API = "a" * 32, "k" * 32
BUNDLE_BYTES = 150_000
STATES = "[...document.querySelectorAll('article .state')].map((state) => state.classList[1])"
READY = f"{STATES}.join() === 'ready,ready'"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    (box.folder / "admins").write_text(f"ana: {ADMIN}\n")
    (box.folder / "admins").chmod(0o600)
    box.configure(top="admin_keys: ./admins")
    box.use_gpu(processes=[StubProcess(os.getpid(), 2)])
    box.vllm.set_faults("embedding", gpu_bytes=29 * GIB)
    box.vllm.set_faults("generation", token_seconds=0.02)
    yield box
    box.close()


@pytest.fixture(scope="module")
def daemon(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
async def page(daemon: RunningDaemon) -> AsyncIterator[Page]:
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{daemon.box.ports.main}/") as page:
        await page.until(READY)
        yield page


async def test_it_shows_engines_memory_events_and_logs_without_a_complaint(page: Page) -> None:
    await page.until("document.getElementById('log').textContent.includes('startup complete')")
    await page.until("document.getElementById('events').textContent.includes('generation ready')")
    text = await page.value("document.body.innerText")
    assert "healthy: 2 of 2 engines ready" in text
    assert "29.0 of 30.0 GiB" in text
    assert f"pid {os.getpid()}" in text
    assert page.complaints == []


async def test_what_is_not_known_is_a_dash(page: Page) -> None:
    label = "[...document.querySelectorAll('#engine-embedding dt')].find((t) => t.textContent === 'tokens/s')"
    assert await page.value(f"{label} !== undefined")
    assert "–" in await page.value("document.getElementById('engine-generation').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
async def test_it_reads_at_every_width_in_light_and_dark(page: Page, width: int, scheme: str) -> None:
    await page.look(width, scheme)
    assert await page.value("document.documentElement.scrollWidth") <= width
    await page.value(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8") + ";0")
    found = await page.value("axe.run().then((report) => report.violations)")
    grave = [(f["id"], f["nodes"][0]["html"]) for f in found if f["impact"] in ("serious", "critical")]
    assert grave == []
    assert page.complaints == []


async def test_a_killed_engine_is_seen_to_fall_and_to_come_back(page: Page, daemon: RunningDaemon) -> None:
    await page.value(
        "(window.seen = [], new MutationObserver(() => window.seen.push(...document.querySelector("
        "'#engine-embedding .state').classList)).observe(document.getElementById('engines'), "
        "{subtree: true, childList: true, attributes: true}), 0)"
    )
    os.kill(daemon.core("embedding"), signal.SIGKILL)
    await page.until("window.seen.some((state) => !['state', 'ready'].includes(state))")
    await page.until(READY)
    await page.until("document.getElementById('engine-embedding').innerText.includes('last exit: ')")
    assert await page.value("document.getElementById('events').textContent.includes('embedding backoff')")


async def test_engines_are_steered_with_the_admins_key_alone(page: Page, daemon: RunningDaemon) -> None:
    restart = "#engine-embedding button[aria-label='restart embedding']"
    assert await page.value(f'document.querySelector("{restart}").disabled')
    await use_key(page, "wrong" * 4)
    await page.until(f'!document.querySelector("{restart}").disabled')
    await page.click(restart)
    await page.until("document.getElementById('notice').textContent.includes('The key is not known here')")
    before = await asyncio.to_thread(daemon.leader, "embedding")
    await use_key(page, ADMIN)
    await page.until("document.getElementById('notice').hidden")
    await page.click(restart)
    await page.until("document.getElementById('events').textContent.includes(\"with ana's key\")")
    await page.until(f"{STATES}[0] !== 'ready'")
    await page.until(READY)
    assert await asyncio.to_thread(daemon.leader, "embedding") != before


async def use_key(page: Page, key: str) -> None:
    await page.value(f"document.getElementById('key').value = '{key}'")
    await page.click("#key-form button")


async def test_the_playground_streams_a_completion_and_makes_an_embedding(page: Page) -> None:
    await page.value("document.getElementById('try-model').value = 'writer'")
    await page.value("document.getElementById('try-model').dispatchEvent(new Event('change'))")
    for route in ("/v1/completions", "/v1/chat/completions"):
        await page.value(f"document.getElementById('try-route').value = '{route}'")
        await page.value("document.getElementById('try-tokens').value = 40")
        await page.click("#try-send")
        await page.until("document.getElementById('try-answer').textContent.length > 0")
        assert await page.value("!document.getElementById('try-stop').disabled")  # it has not ended yet
        await page.until("document.getElementById('try-note').textContent.startsWith('done in')")
    await page.value("document.getElementById('try-model').value = 'embedder'")
    await page.value("document.getElementById('try-model').dispatchEvent(new Event('change'))")
    await page.click("#try-send")
    await page.until("document.getElementById('try-note').textContent.startsWith('8 dimensions')")
    await page.until("document.getElementById('requests').textContent.includes('/v1/embeddings')")
    assert page.complaints == []


async def test_a_text_is_never_read_as_html(page: Page, daemon: RunningDaemon) -> None:
    with (daemon.box.folder / "logs/embedding.log").open("a") as log:
        log.write("<img src=x onerror=\"document.title='broken'\">\n")
    await page.until("document.getElementById('log').textContent.includes('<img src=x')")
    assert await page.value("document.querySelector('#log img') === null")
    assert await page.value("document.title") == "memoria"


async def test_everything_can_be_reached_with_the_keyboard(page: Page) -> None:
    await use_key(page, ADMIN)
    await page.until("!document.querySelector('#engine-embedding button[aria-label^=restart]').disabled")
    reached = set()
    for _ in range(40):
        await page.press("Tab")
        reached.add(
            await page.value("document.activeElement.id || document.activeElement.getAttribute('aria-label')")
        )
    assert reached >= {
        *("key", "restart embedding", "stop generation", "events", "log-filter", "log-follow", "log"),
        *("try-model", "try-route", "try-text", "try-send", "try-curl"),
    }
    await page.value("document.querySelector('[role=tab][aria-selected=true]').focus()")
    await page.press("ArrowRight")
    assert await page.value("document.activeElement.textContent") == "generation"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await page.value(outline) == "solid"
    await page.value("document.getElementById('try-curl').focus()")
    await page.press("Enter")
    await page.until("document.getElementById('try-answer').textContent.startsWith('curl ')")


async def test_where_keys_are_asked_for_it_asks_for_one_and_shows_what_that_may_see(box: Box) -> None:
    (box.folder / "keys").write_text(f"chat: {API}\n")
    (box.folder / "keys").chmod(0o600)
    box.configure(top="keys: ./keys")
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until("document.getElementById('notice').textContent.startsWith('A key is needed')")
        await use_key(page, API)
        await page.until(READY)
        await page.until("document.getElementById('notice').hidden")
        await page.until("document.getElementById('log').textContent.includes('`admin_keys`')")
        await page.until("document.getElementById('requests-none').textContent.includes('`admin_keys`')")
        await page.click("#try-send")
        await page.until("document.getElementById('try-note').textContent.includes('dimensions')")
    await asyncio.to_thread(daemon.stop)


async def test_it_turns_grey_when_memoria_ends_and_comes_back_with_it(box: Box) -> None:
    box.configure()
    daemon = box.start()
    await asyncio.to_thread(daemon.until_ready)
    async with browser_page(f"http://127.0.0.1:{box.ports.main}/") as page:
        await page.until(READY)
        await asyncio.to_thread(daemon.stop)
        await page.until("document.body.classList.contains('stale')")
        again = box.start()
        await asyncio.to_thread(again.until_ready)
        await page.until(f"!document.body.classList.contains('stale') && {READY}")
        await asyncio.to_thread(again.stop)


def test_it_is_small_and_asks_no_other_host() -> None:
    bundle = b"".join(file.read_bytes() for file in sorted(STATIC.iterdir()))
    assert len(gzip.compress(bundle)) < BUNDLE_BYTES
    hosts = bundle.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"http://" not in hosts
    assert b"https://" not in hosts


def test_it_says_what_a_page_of_it_may_do(daemon: RunningDaemon) -> None:
    answer = ask(daemon.box.ports.main, "GET", "/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (
        ask(daemon.box.ports.main, "GET", "/page/main.js")
        .headers["content-type"]
        .startswith("text/javascript")
    )
    assert ask(daemon.box.ports.main, "GET", "/page/../app.py").status == 404
    assert ask(daemon.box.ports.embedding, "GET", "/").status == 404
