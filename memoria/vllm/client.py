"""Asking an engine how it does. An engine is ready when `/health` is 200 *and* one real request came back.

`/health` alone answers before the first request has shown that the engine can compute (and, with a CPU build,
before a missing instruction kills it), see vllm.md.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from memoria.config.model import Runner
from memoria.engine.address import EngineAddress, UnixAddress
from memoria.vllm.progress import Progress, progress_of

logger = logging.getLogger(__name__)

BETWEEN_TRIES = 0.25  # seconds

# What each runner may be asked, cheapest first. A model serves only some of them: 404 and 400 mean "ask the
# next one", and when none is served a healthy engine is believed.
QUESTIONS: dict[Runner, tuple[tuple[str, dict[str, Any]], ...]] = {
    "generate": (
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ),
    "pooling": (
        ("/v1/embeddings", {"input": "a"}),
        ("/score", {"text_1": "a", "text_2": "a"}),
        ("/classify", {"input": "a"}),
        ("/pooling", {"input": "a"}),
    ),
}


def base_url(address: EngineAddress) -> str:
    return "http://engine" if isinstance(address, UnixAddress) else str(address)


def session(address: EngineAddress, timeout: float | None) -> aiohttp.ClientSession:
    """A client for memoria's own questions to an engine; `timeout` in seconds for each, None: no limit."""
    connector = aiohttp.UnixConnector(address.path) if isinstance(address, UnixAddress) else None
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout))


async def until_answering(address: EngineAddress, runner: Runner, model: str, *, timeout: float) -> None:
    """Returns when the engine is ready; `timeout` (seconds) is for one `/health`. Never raises: the caller
    bounds the whole wait, and a process that dies is seen elsewhere."""
    async with session(address, timeout) as client:
        url = base_url(address)
        while not await _is_healthy(client, url):  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(BETWEEN_TRIES)
        while not await _answers(client, url, runner, model):  # noqa: ASYNC110
            await asyncio.sleep(BETWEEN_TRIES)


async def answers(address: EngineAddress, runner: Runner, model: str) -> bool:
    """Whether one real request is answered, however long that takes."""
    async with session(address, None) as client:
        return await _answers(client, base_url(address), runner, model)


async def progress(address: EngineAddress, *, timeout: float) -> Progress | None:
    """What the engine core has done, by `/metrics`; None when that is not answered in `timeout` seconds."""
    try:
        async with session(address, timeout) as client, client.get(base_url(address) + "/metrics") as answer:
            return progress_of(await answer.text())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        logger.debug("%s: no figures: %r", address, error)
        return None


async def _is_healthy(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _answers(client: aiohttp.ClientSession, url: str, runner: Runner, model: str) -> bool:
    # the first request may compile kernels: it gets as long as the start has
    no_limit = aiohttp.ClientTimeout(total=None)
    for path, question in QUESTIONS[runner]:
        try:
            async with client.post(url + path, json={"model": model, **question}, timeout=no_limit) as answer:
                await answer.read()
                if answer.status == 200:
                    return True
                if answer.status >= 500:
                    return False
                logger.debug("%s is not what this model serves: %d", path, answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.debug("%s did not answer: %r", path, error)
            return False
    return True
