"""The clients: each asks, waits for the answer, and asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp

from memoria.bench import clients
from memoria.bench.clients import Endpoint, Engine, Load, Seen
from memoria.bench.figures import Phase

ALONE, TOGETHER = "{} alone", "together"
AFTER_FAILURE = 0.2  # seconds


async def run_phases(
    endpoint: Endpoint,
    load: Load,
    engines: Sequence[Engine],
    tick: Callable[[str, float], None] = lambda _, __: None,
) -> AsyncIterator[Phase]:
    """Each engine alone, then, if there are several, all together. `tick` is told the phase, and how much of
    all phases is over (0 to 1)."""
    wanted: list[tuple[str, tuple[Engine, ...]]] = [
        (ALONE.format(engine.name), (engine,)) for engine in engines
    ]
    if len(engines) > 1:
        wanted.append((TOGETHER, tuple(engines)))
    for number, (name, loaded) in enumerate(wanted):

        def share(part: float, name: str = name, number: int = number) -> None:
            tick(name, (number + part) / len(wanted))

        yield await run_phase(name, endpoint, load, loaded, share)


async def run_phase(
    name: str,
    endpoint: Endpoint,
    load: Load,
    engines: Sequence[Engine],
    tick: Callable[[float], None] = lambda _: None,
) -> Phase:
    """Loads these engines. `tick` is told now and then how much of the phase is over (0 to 1). A failed
    request is counted, and its client goes on after a moment; what is under way at the end is given up."""
    began = time.perf_counter()
    whole = load.warm_up + load.seconds
    seen = {engine: Seen(began + load.warm_up) for engine in engines}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)  # the phase's end is the end of every request
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=dict(endpoint.headers)
    ) as session:
        tasks = [
            asyncio.create_task(_client(session, endpoint.url, engine, load, seen[engine]))
            for engine in engines
            for _ in range(_clients(engine, load))
        ]
        try:
            while (gone := time.perf_counter() - began) < whole:
                tick(gone / whole)
                await asyncio.sleep(min(0.1, whole - gone))
            phase = _phase(name, load, seen, time.perf_counter() - began - load.warm_up)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    tick(1.0)
    return phase


def _clients(engine: Engine, load: Load) -> int:
    return load.embedders if engine.kind == "embedding" else load.streams


def _phase(name: str, load: Load, seen: dict[Engine, Seen], seconds: float) -> Phase:
    for engine, one in seen.items():
        one.close(load.warm_up + seconds, _clients(engine, load))
    return Phase(
        name,
        seconds,
        tuple(clients.embedding(e, one, seconds) for e, one in seen.items() if e.kind == "embedding"),
        tuple(clients.generation(e, one, seconds) for e, one in seen.items() if e.kind == "generation"),
    )


async def _client(session: aiohttp.ClientSession, url: str, engine: Engine, load: Load, seen: Seen) -> None:
    ask = clients.embed if engine.kind == "embedding" else clients.generate
    while True:
        try:
            await ask(session, url, engine, load, seen)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            seen.fail(str(error) or type(error).__name__)
            await asyncio.sleep(AFTER_FAILURE)
