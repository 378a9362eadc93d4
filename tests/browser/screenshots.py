"""The pictures of the page in the READMEs: `python -m tests.browser.screenshots FOLDER`. Takes seven minutes.

The engines are the demo's, real vLLM on the CPU, under the names of two models that fit an H200. The GPU is
the tests' stub, on which each of them holds nearly what its budget allows. They are under load all the time,
and one of them is killed once.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import aiohttp

from memoria.gpu.catalogue import named_device
from memoria.text import GIB
from memoria.vllm.install.find import data_home, find
from tests.browser.acts import ADMIN, CONTROLLABLE, LOOKS, READY, choose, text_of, use_key, write_keys
from tests.browser.chromium import browser_page
from tests.stub_nvml import NvmlStub, StubGpu, StubProcess, build_library
from tests.vllm.daemon import RealDaemon

NAME = "NVIDIA H200"
TOTAL, USABLE = 143_771 * 2**20, named_device(NAME).total_bytes  # as NVML says, and as CUDA says
OTHER = 3 * GIB
SHARES = {"embedding": 0.3, "generation": 0.6}
UNUSED = GIB  # of its budget by each engine
MODELS = {"embedding": "Qwen/Qwen3-Embedding-0.6B", "generation": "Qwen/Qwen3-4B-Thinking-2507-FP8"}
KEYS = {"chat": "c" * 32, "indexer": "i" * 32}
CHATS, INDEXERS = 10, 2  # clients at once
KILLED_AFTER, TAKEN_AFTER = 60.0, 330.0  # seconds of load
LINES = "[...document.querySelectorAll('.spark .line')].every((line) => line.getAttribute('d').length > 120)"
PATIENCE = 300.0  # seconds, for the killed engine on a busy machine
WAVE = 80.0  # seconds from little load to much and back
QUESTION = "Which of these passages says how long a lease lasts?"


async def take(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="memoria-pictures-") as name, neighbour(Path(name)) as other:
        stage = Path(name)
        gpu = NvmlStub(stage, build_library(stage))
        hold(gpu, {}, other)
        daemon = start(stage, gpu)
        async with aiohttp.ClientSession(daemon.url) as client:
            held = asyncio.create_task(follow(gpu, client, other))
            load: list[asyncio.Task[NoReturn]] = []
            try:
                await asyncio.to_thread(daemon.wait_ready)
                load += [asyncio.create_task(chat(client, lag)) for lag in range(CHATS)]
                load += [asyncio.create_task(index(client)) for _ in range(INDEXERS)]
                await asyncio.sleep(KILLED_AFTER)
                os.kill((await pids(client))["embedding"], signal.SIGKILL)
                await asyncio.sleep(TAKEN_AFTER - KILLED_AFTER)
                await picture(daemon.url, folder)
            finally:
                for task in load:
                    task.cancel()
                await asyncio.to_thread(daemon.stop)  # waits until the GPU holds nothing of the engines
                held.cancel()
                await asyncio.gather(held, *load, return_exceptions=True)


@contextmanager
def neighbour(stage: Path) -> Iterator[int]:
    """The pid of a process of another user of the GPU, `python train.py`, which does nothing."""
    (stage / "train.py").write_text("import sys\nsys.stdin.read()\n")
    command = ["python", "train.py"]
    with subprocess.Popen(command, executable=sys.executable, cwd=stage, stdin=subprocess.PIPE) as process:
        yield process.pid


def start(stage: Path, gpu: NvmlStub) -> RealDaemon:
    write_keys(stage / "admins", ana=ADMIN)
    write_keys(stage / "keys", **KEYS)
    vllm = find("auto", data_home(os.environ), "cpu").command[0]
    engines = {
        name: {"gpu_memory_utilization": share, "served_model_name": MODELS[name]}
        for name, share in SHARES.items()
    }
    return RealDaemon(
        stage,
        environment=gpu.env(),
        device="cuda",
        vllm=vllm,
        keys="./keys",
        admin_keys="./admins",
        engines=engines,
    )


async def picture(url: str, folder: Path) -> None:
    async with browser_page(f"{url}/") as page:
        await use_key(page, ADMIN)
        shown = f"{READY} && {CONTROLLABLE} && {LINES} && {text_of('log')}.length > 0"
        await page.until(shown, PATIENCE)
        await page.click("#log-tabs button:nth-child(2)")
        await choose(page, "try-model", MODELS["embedding"])  # what the other one writes is noise
        await page.value(f"document.getElementById('try-text').value = {QUESTION!r}")
        await page.click("#try-send")
        await page.until(f"{text_of('try-note')}.includes('dimensions')")
        await page.look(max(LOOKS)[0], "light")
        height = await page.value("document.documentElement.scrollHeight")  # all of it where it is wide
        for width, scheme in LOOKS:
            await page.look(width, scheme)
            await page.screenshot(folder / f"page-{width}-{scheme}.webp", height)
        assert page.complaints == []


def hold(gpu: NvmlStub, engines: dict[str, int], other: int) -> None:
    held = {pid: int(SHARES[name] * USABLE) - UNUSED for name, pid in engines.items()} | {other: OTHER}
    gpu.set(
        gpus=[StubGpu(TOTAL, sum(held.values()), TOTAL - USABLE, name=NAME)],
        procs=[StubProcess(pid, size) for pid, size in held.items()],
    )


async def follow(gpu: NvmlStub, client: aiohttp.ClientSession, other: int) -> NoReturn:
    """The GPU holds the memory of ready engines only."""
    while True:
        try:
            hold(gpu, await pids(client), other)
        except aiohttp.ClientError:
            hold(gpu, {}, other)
        await asyncio.sleep(0.2)


async def pids(client: aiohttp.ClientSession) -> dict[str, int]:
    async with client.get("/admin/status", headers={"x-api-key": ADMIN}) as answer:
        engines = (await answer.json())["engines"]
    return {engine["name"]: engine["pid"] for engine in engines if engine["state"] == "ready"}


async def index(client: aiohttp.ClientSession) -> NoReturn:
    while True:
        texts = ["word " * random.randint(40, 400) for _ in range(random.choice((1, 4, 8)))]
        await send(client, "indexer", "/v1/embeddings", model=MODELS["embedding"], input=texts)
        await asyncio.sleep(random.uniform(0.2, 0.8) * calm(20.0))


async def chat(client: aiohttp.ClientSession, lag: float) -> NoReturn:
    while True:
        await asyncio.sleep(random.uniform(0.2, 2.0) * calm(lag))
        await send(
            client,
            "chat",
            "/v1/chat/completions",
            model=MODELS["generation"],
            messages=[{"role": "user", "content": "word " * random.randint(100, 900)}],
            max_tokens=random.randint(100, 900),
            stream=True,
            stream_options={"include_usage": True},
        )


async def send(client: aiohttp.ClientSession, key: str, route: str, **body: Any) -> None:
    with suppress(aiohttp.ClientError):
        async with client.post(route, json=body, headers={"x-api-key": KEYS[key]}) as answer:
            await answer.read()


def calm(lag: float) -> float:
    """Between 1 and 5, in waves."""
    return 3 + 2 * math.sin(2 * math.pi * (time.monotonic() - lag) / WAVE)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1])))
