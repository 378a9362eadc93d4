"""The page's playground: what it sends, and how it shows what comes back."""

from __future__ import annotations

import json

import pytest

from tests.browser.acts import choose, text_of
from tests.browser.chromium import Page
from tests.integration.daemon import RunningDaemon

NOTE, ANSWER = text_of("try-note"), text_of("try-answer")
SHOW = """
import('/page/answers.js').then(async ({ showStream }) => {
  const place = document.createElement('pre');
  const failed = (error) => `failed: ${error.message}`;
  const note = await showStream(new Response(%s), place, () => '5 ms').catch(failed);
  return [note, [...place.children].map((part) => [part.className, part.textContent])];
})
"""
ROUTES = "import('/page/answers.js').then(({ routesOf }) => routesOf(%s)%s)"


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
async def test_it_streams_a_completion(page: Page, route: str) -> None:
    await choose(page, "try-model", "writer")
    await choose(page, "try-route", route)
    await page.value("document.getElementById('try-tokens').value = 40")
    await page.click("#try-send")
    await page.until(f"{ANSWER}.length > 0")
    assert await page.value("!document.getElementById('try-stop').disabled")  # it has not ended yet
    await page.until(f"{NOTE}.startsWith('done in')")
    await page.until(f"{text_of('requests')}.includes('{route}')")
    assert page.complaints == []


async def test_it_stops_a_stream_when_asked(page: Page, daemon: RunningDaemon) -> None:
    await choose(page, "try-model", "writer")
    await page.value("document.getElementById('try-tokens').value = 5000")
    await page.click("#try-send")
    await page.until(f"{ANSWER}.length > 0")
    await page.click("#try-stop")
    await page.until(f"{NOTE}.startsWith('stopped after')")
    assert await page.value("document.getElementById('try-stop').disabled")
    await page.until(f"{text_of('requests')}.includes('aborted')")
    assert daemon.engine("generation").in_flight == 0
    assert page.complaints == []


async def test_it_makes_an_embedding(page: Page) -> None:
    await choose(page, "try-model", "embedder")
    assert await page.value("document.getElementById('try-tokens').disabled")
    await page.click("#try-send")
    await page.until(f"{NOTE}.startsWith('8 dimensions')")
    await page.until(f"{text_of('requests')}.includes('/v1/embeddings')")
    assert page.complaints == []


async def test_reasoning_is_shown_apart_from_the_answer(page: Page) -> None:
    deltas = ({"reasoning": "Let me "}, {"reasoning_content": "think."}, {"content": "4"}, {"content": "2"})
    stream = "".join(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas)
    note, parts = await page.value(SHOW % json.dumps(stream + "data: [DONE]\n\n"))
    assert parts == [["reasoning", "Let me think."], ["content", "42"]]
    assert note == "done in 5 ms, first of 4 chunks after 5 ms"


async def test_a_stream_without_its_end_is_said_to_have_broken_off(page: Page) -> None:
    stream = f"data: {json.dumps({'choices': [{'text': 'Once'}]})}\n\n"
    note, parts = await page.value(SHOW % json.dumps(stream))
    assert note == "failed: the answer broke off after 5 ms and 1 chunks: it has no end mark"
    assert parts == [["content", "Once"]]


@pytest.mark.parametrize(
    ("tasks", "routes"),
    [
        ([], ["/v1/embeddings"]),
        (["embed", "token_embed"], ["/v1/embeddings"]),
        (["classify"], ["/rerank", "/score", "/classify"]),
    ],
)
async def test_a_pooling_engine_is_asked_what_it_serves(
    page: Page, tasks: list[str], routes: list[str]
) -> None:
    engine = json.dumps({"runner": "pooling", "tasks": tasks})
    assert await page.value(ROUTES % (engine, ".map((one) => one.path)")) == routes


async def test_a_reranker_is_given_a_query_and_documents(page: Page) -> None:
    engine = json.dumps({"runner": "pooling", "tasks": ["classify"]})
    body = await page.value(ROUTES % (engine, ".at(0).body('which?\\nthis one\\n\\nthat one')"))
    assert body == {"query": "which?", "documents": ["this one", "that one"]}
