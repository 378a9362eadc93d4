"""The README's pictures of the page: `python -m tests.browser.screenshots FOLDER`, which takes seven minutes.

The engines are real, on the CPU. The GPU is the tests' stub, on which each uses nearly its whole
budget. They have requests all the time, and one of them is killed once.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import aiohttp

from memoria.text import GIB
from memoria.vllm.install.find import find
from memoria.vllm.install.home import data_home
from tests.browser.acts import ADMIN, CONTROLLABLE, LOOKS, READY, choose, text_of, use_key, write_keys
from tests.browser.chromium import browser_page
from tests.stub_nvml import NvmlStub, StubGpu, StubProcess, build_library
from tests.vllm.daemon import RealDaemon

SHARES = {"embedding": 0.3, "generation": 0.6}
TOTAL, RESERVED, OTHER, SPARE = (
    80 * GIB,
    GIB // 2,
    3 * GIB,
    GIB,
)  # the last: what an engine leaves of its budget
KILLED_AFTER, TAKEN_AFTER = 60.0, 330.0  # seconds of load
LINES = "[...document.querySelectorAll('.spark .line')].every((line) => line.getAttribute('d').length > 120)"
WAVE = 80.0  # seconds from little to do to much and back


async def take(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="memoria-pictures-") as stage:
        gpu = NvmlStub(Path(stage), build_library(Path(stage)))
        hold(gpu, {})
        daemon = start(Path(stage), gpu)
        async with aiohttp.ClientSession(daemon.url) as client:
            held = asyncio.create_task(follow(gpu, client))
            busy: list[asyncio.Task[NoReturn]] = []
            try:
                await asyncio.to_thread(daemon.wait_ready)
                busy += [asyncio.create_task(complete(client, lag)) for lag in (0.0, 5.0, 10.0)]
                busy.append(asyncio.create_task(embed(client)))
                await asyncio.sleep(KILLED_AFTER)
                os.kill((await pids(client))["embedding"], signal.SIGKILL)
                await asyncio.sleep(TAKEN_AFTER - KILLED_AFTER)
                await picture(daemon.url, folder)
            finally:
                for task in busy:
                    task.cancel()
                await asyncio.to_thread(daemon.stop)  # waits until the GPU holds nothing of the engines
                held.cancel()
                await asyncio.gather(held, *busy, return_exceptions=True)


def start(stage: Path, gpu: NvmlStub) -> RealDaemon:
    write_keys(stage / "admins", ana=ADMIN)
    vllm = find("auto", data_home(os.environ), "cpu").command[0]
    engines = {name: {"gpu_memory_utilization": share} for name, share in SHARES.items()}
    return RealDaemon(
        stage, environment=gpu.env(), device="cuda", vllm=vllm, admin_keys="./admins", engines=engines
    )


async def picture(url: str, folder: Path) -> None:
    async with browser_page(f"{url}/") as page:
        await use_key(page, ADMIN)
        await page.until(f"{READY} && {CONTROLLABLE} && {LINES} && {text_of('log')}.length > 0")
        await page.click("#log-tabs button:nth-child(2)")
        await choose(page, "try-model", "tiny-generation")
        await page.click("#try-send")
        await page.until(f"{text_of('try-note')}.startsWith('done in')")
        await page.look(max(LOOKS)[0], "light")
        height = await page.value("document.documentElement.scrollHeight")  # all of it where it is wide
        for width, scheme in LOOKS:
            await page.look(width, scheme)
            await page.screenshot(folder / f"page-{width}-{scheme}.webp", height)
        assert page.complaints == []


def hold(gpu: NvmlStub, engines: dict[str, int]) -> None:
    held = {pid: int(SHARES[name] * TOTAL) - SPARE for name, pid in engines.items()} | {os.getpid(): OTHER}
    gpu.set(
        gpus=[StubGpu(TOTAL, sum(held.values()), RESERVED, name="stub GPU")],
        procs=[StubProcess(pid, size) for pid, size in held.items()],
    )


async def follow(gpu: NvmlStub, client: aiohttp.ClientSession) -> NoReturn:
    """The GPU holds what is ready, and nothing of what is not."""
    while True:
        try:
            hold(gpu, await pids(client))
        except aiohttp.ClientError:
            hold(gpu, {})
        await asyncio.sleep(0.2)


async def pids(client: aiohttp.ClientSession) -> dict[str, int]:
    async with client.get("/admin/status") as answer:
        engines = (await answer.json())["engines"]
    return {engine["name"]: engine["pid"] for engine in engines if engine["state"] == "ready"}


async def embed(client: aiohttp.ClientSession) -> NoReturn:
    while True:
        await ask(client, "/v1/embeddings", model="tiny-embedding", input="word " * random.randint(4, 400))
        await asyncio.sleep(random.uniform(0.1, 0.4) * calm(20.0))


async def complete(client: aiohttp.ClientSession, lag: float) -> NoReturn:
    while True:
        prompt, most = "word " * random.randint(4, 200), random.randint(16, 160)
        await ask(
            client,
            "/v1/completions",
            model="tiny-generation",
            prompt=prompt,
            max_tokens=most,
            stream=True,
            stream_options={"include_usage": True},
        )
        await asyncio.sleep(random.uniform(0.1, 0.8) * calm(lag))


async def ask(client: aiohttp.ClientSession, route: str, **body: Any) -> None:
    with suppress(aiohttp.ClientError):
        async with client.post(route, json=body) as answer:
            await answer.read()


def calm(lag: float) -> float:
    """Between 1 and 5, in waves."""
    return 3 + 2 * math.sin(2 * math.pi * (time.monotonic() - lag) / WAVE)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1])))
