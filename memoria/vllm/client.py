"""memoria's own requests to an engine, which is ready once `/health` is 200 *and* one real request succeeded.

`/health` alone is 200 before any request has shown that the engine can compute (and, with a CPU build, before
a missing instruction kills it).
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import aiohttp

from memoria.config.model import Runner
from memoria.vllm.facts import EngineAddress, Progress, UnixAddress
from memoria.vllm.metrics import progress_of

logger = logging.getLogger(__name__)

BETWEEN_TRIES = 0.25  # seconds

# Requests that a runner may serve, cheapest first. A model serves only some of them: 404 and 400 mean "try
# the next one". If none is served, a healthy engine counts as ready.
PROBES: dict[Runner, tuple[tuple[str, dict[str, Any]], ...]] = {
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
    """A client for memoria's own requests to an engine; `timeout` in seconds per request, None: no limit."""
    connector = aiohttp.UnixConnector(address.path) if isinstance(address, UnixAddress) else None
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout))


async def until_answering(address: EngineAddress, runner: Runner, model: str, *, timeout: float) -> None:
    """Returns once the engine is ready; `timeout` (seconds) is for one `/health`. Never raises: the caller
    limits the whole wait, and notices a dead process itself."""
    async with session(address, timeout) as client:
        url = base_url(address)
        while not await _is_healthy(client, url):  # noqa: ASYNC110 - polling is the only way
            await asyncio.sleep(BETWEEN_TRIES)
        while not await _answers(client, url, runner, model):  # noqa: ASYNC110
            await asyncio.sleep(BETWEEN_TRIES)


async def answers(address: EngineAddress, runner: Runner, model: str) -> bool:
    """Whether one real request succeeds, however long it takes."""
    async with session(address, None) as client:
        return await _answers(client, base_url(address), runner, model)


async def exposition(address: EngineAddress, *, timeout: float) -> bytes:
    """The engine's `/metrics`, in Prometheus's text format. Raises what aiohttp raises."""
    async with session(address, timeout) as client, client.get(base_url(address) + "/metrics") as answer:
        answer.raise_for_status()
        return await answer.read()


async def progress(address: EngineAddress, *, timeout: float) -> Progress | None:
    """The engine core's figures; None when `/metrics` fails or takes longer than `timeout` seconds."""
    try:
        return progress_of(await exposition(address, timeout=timeout))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        logger.debug("%s: no metrics: %r", address, error)
        return None


async def list_models(address: EngineAddress, *, timeout: float) -> list[dict[str, Any]] | None:
    """The engine's own model cards, adapters among them; None when it does not list them in time."""
    try:
        async with (
            session(address, timeout) as client,
            client.get(base_url(address) + "/v1/models") as answer,
        ):
            return list((await answer.json())["data"])
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: no models listed: %r", address, error)
        return None


async def post(address: EngineAddress, path: str, body: dict[str, Any], *, timeout: float) -> tuple[int, Any]:
    """Status and JSON of an answer: None for another body, 0 for no answer in time."""
    try:
        async with (
            session(address, timeout) as client,
            client.post(base_url(address) + path, json=body) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        logger.warning("%s: %s failed: %r", address, path, error)
        return 0, None
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None


async def _is_healthy(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _answers(client: aiohttp.ClientSession, url: str, runner: Runner, model: str) -> bool:
    # the first request may compile kernels: only the start's own timeout limits it
    no_limit = aiohttp.ClientTimeout(total=None)
    for path, body in PROBES[runner]:
        try:
            async with client.post(url + path, json={"model": model, **body}, timeout=no_limit) as answer:
                await answer.read()
                if answer.status == 200:
                    return True
                if answer.status >= 500:
                    return False
                logger.debug("%s is not served by this model: %d", path, answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.debug("%s failed: %r", path, error)
            return False
    return True
