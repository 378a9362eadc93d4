"""memoria's own requests to an engine, which is ready once `/health` is 200 *and* one real request succeeded.

`/health` alone is 200 before any request has shown that the engine can compute (and, with a CPU build, before
a missing instruction kills it).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import aiohttp

from memoria.config.model import Runner
from memoria.errors import UnavailableError
from memoria.vllm.facts import EngineAddress, Progress, Sample, UnixAddress
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


async def post(
    address: EngineAddress, path: str, body: dict[str, Any] | None = None, *, timeout: float | None
) -> tuple[int, Any]:
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


# ------------------------------------------------------------------ sleep mode, of vLLM's development routes


async def fall_asleep(address: EngineAddress, level: int) -> str | None:
    """Why it did not, or None; has no limit of its own. The level is in the query: vLLM ignores a body, and
    would choose level 1 (vllm/entrypoints/serve/dev/sleep/api_router.py)."""
    return await _order(address, f"/sleep?level={level}&mode=abort") or await _sleeps(address, wanted=True)


async def wake_up(address: EngineAddress, level: int) -> str | None:
    """As `fall_asleep`. Level 2 has dropped the weights: they are read again before the KV cache is back and
    vLLM's scheduler goes on, or it would compute with what happens to be there."""
    if level == 1:
        failed = await _order(address, "/wake_up")
    else:
        failed = (
            await _order(address, "/wake_up?tags=weights")
            or await _order(address, "/collective_rpc", {"method": "reload_weights"})
            or await _order(address, "/wake_up?tags=kv_cache")
        )
    return failed or await _sleeps(address, wanted=False)


async def _order(address: EngineAddress, path: str, body: dict[str, Any] | None = None) -> str | None:
    status, answer = await post(address, path, body, timeout=None)
    if status == 200:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return (
        f"{path.partition('?')[0]}: {f'status {status}' if status else 'no answer'}{f', {said}' * bool(said)}"
    )


async def _sleeps(address: EngineAddress, *, wanted: bool) -> str | None:
    try:
        async with session(address, None) as client, client.get(f"{base_url(address)}/is_sleeping") as answer:
            sleeps = (await answer.json())["is_sleeping"]
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
        return f"/is_sleeping: {error!r}"
    return None if sleeps is wanted else f"/is_sleeping says {str(sleeps).lower()}"


async def sample(address: EngineAddress, runner: Runner, model: str) -> Sample | None:
    """An answer that the same weights give again: one greedy token, or one vector. None where the model
    serves none of the probes. Raises `UnavailableError`; has no limit of its own."""
    for path, body in PROBES[runner]:
        greedy = {"temperature": 0} if runner == "generate" else {}
        status, answer = await post(address, path, {"model": model, **body, **greedy}, timeout=None)
        if status == 200:
            return _sample_of(answer)
        if not 400 <= status < 500:
            raise UnavailableError(f"{path}: {f'status {status}' if status else 'no answer'}")
    return None


def _sample_of(answer: Any) -> Sample:
    try:
        if "choices" in answer:
            choice = answer["choices"][0]
            return str(choice["message"]["content"] if "message" in choice else choice["text"])
        first = answer["data"][0]
        found = next(first[name] for name in ("embedding", "score", "probs", "data") if name in first)
        return tuple(_flat(found))
    except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        raise UnavailableError(f"an answer of no known shape: {error!r}") from error


def _flat(numbers: Any) -> Iterator[float]:
    if isinstance(numbers, list):
        for item in numbers:
            yield from _flat(item)
    else:
        yield float(numbers)


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
