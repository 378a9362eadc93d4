"""The latency guard over real sockets: two engines share one GPU, and slow each other down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from memoria.config.load import load
from memoria.config.model import Config, Hold
from memoria.proxy.admission.guard import Guarding
from memoria.proxy.exchange.context import Protected
from tests.integration.proxy_rig import Asked, Rig, ScriptedEngine, on_uvloop, request

CHAT, EMBEDDINGS = b"/v1/chat/completions", b"/v1/embeddings"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"a\r\ndata: {}\n\n\r\n"
TARGET = 0.030
PERIOD = 0.2  # of the guard, seconds


@dataclass
class Gpu:
    """A token comes every `base` seconds, and later by `share` for every embedding that is being made; one of
    those takes `embed`."""

    base: float = 0.010
    share: float = 0.002
    embed: float = 0.05
    embedding: int = 0
    gaps: list[float] = field(default_factory=list)

    @contextmanager
    def works(self) -> Iterator[None]:
        self.embedding += 1
        try:
            yield
        finally:
            self.embedding -= 1

    async def generate(self, asked: Asked) -> None:
        await asked.read_body()
        await asked.send(SSE)
        while not asked.gone.is_set():
            await asyncio.sleep(self.base + self.share * self.embedding)
            await asked.send(EVENT)

    async def embeds(self, asked: Asked) -> None:
        await asked.read_body()
        with self.works():
            await asyncio.sleep(self.embed)
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


async def read_tokens(rig: Rig, gpu: Gpu) -> None:
    """As its client sees them."""
    client = await rig.client()
    await client.send(request(CHAT, b"{}"))
    await client.head()
    before = None
    while True:
        await client.reader.readuntil(b"\n\n")
        now = time.monotonic()
        if before is not None:
            gpu.gaps.append(now - before)
        before = now


async def embed_on_and_on(rig: Rig) -> None:
    client = await rig.client()
    while True:
        await client.send(request(EMBEDDINGS, b"{}"))
        assert (await client.response()).status == 200


def config(folder: Path) -> Config:
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text("{}")
    file = folder / "memoria.yaml"
    file.write_text(
        "device: cpu\n"
        f"guard: {{protect: generation, inter_token_ms: {TARGET * 1000:g}}}\n"
        "engines:\n"
        "  embedding: {model: ./m, runner: pooling, gpu_memory_utilization: 0.1, max_requests: 64}\n"
        "  generation: {model: ./m, gpu_memory_utilization: 0.1}\n"
    )
    return load(file, {})


@on_uvloop
async def test_tokens_keep_to_their_target_beside_many_embeddings(tmp_path: Path) -> None:
    """Without the guard they do not; with it, the embeddings go on."""
    gpu, engines = Gpu(), config(tmp_path)
    assert engines.guard is not None
    p95, rate = {}, {}
    async with Rig(
        tmp_path,
        max_requests=64,
        hold=Hold(),
        generation=ScriptedEngine(gpu.generate),
        embedding=ScriptedEngine(gpu.embeds),
    ) as rig:
        guarding = Guarding(engines, engines.guard, period=PERIOD)
        tasks = [asyncio.ensure_future(read_tokens(rig, gpu)) for _ in range(4)]
        tasks += [asyncio.ensure_future(embed_on_and_on(rig)) for _ in range(40)]
        for guarded in (False, True):
            if guarded:
                protected = Protected("generation", guarding.observe)
                rig.context.replace_policy(replace(rig.context.policy, protected=protected))
                tasks += [asyncio.ensure_future(read_tokens(rig, gpu)) for _ in range(4)]  # watched ones
                tasks.append(asyncio.ensure_future(guarding.run(rig.admission)))
            await asyncio.sleep(2.0)  # it finds its level
            gpu.gaps.clear()
            before = len(rig.exchanges)
            await asyncio.sleep(4.0)
            p95[guarded] = sorted(gpu.gaps)[len(gpu.gaps) * 19 // 20]
            rate[guarded] = (len(rig.exchanges) - before) / 4
        state = guarding.state
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for guarded, seconds in p95.items():
        print(
            f"guard {'on ' if guarded else 'off'}: p95 {seconds * 1000:.1f} ms between tokens, "
            f"target {TARGET * 1000:g} ms; {rate[guarded]:.0f} embeddings/s"
        )
    assert p95[False] > 1.5 * TARGET
    assert p95[True] < 1.15 * TARGET
    assert state.lowered > 0
    assert rate[True] > 10


async def stream_of(asked: Asked, pieces: list[bytes], step: asyncio.Event) -> None:
    await asked.read_body()
    await asked.send(SSE)
    for piece in pieces:
        await step.wait()
        step.clear()
        await asked.send(piece)
    await asked.send(b"0\r\n\r\n")


@on_uvloop
async def test_a_gap_is_between_two_reads_however_many_events_they_bring(tmp_path: Path) -> None:
    """The first ones may hold no token yet."""
    step, gaps = asyncio.Event(), list[float]()

    async def script(asked: Asked) -> None:
        await stream_of(asked, [EVENT, EVENT, EVENT, EVENT * 5, EVENT], step)

    async with Rig(tmp_path, protect=("generation", gaps.append), generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        await client.post(CHAT, b"{}")
        await client.head()
        for expected in (EVENT, EVENT, EVENT, EVENT * 5, EVENT):
            step.set()
            assert await client.reader.readexactly(len(expected)) == expected
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    assert len(gaps) == 3


@on_uvloop
async def test_what_is_no_stream_of_events_has_no_gaps(tmp_path: Path) -> None:
    gaps: list[float] = []

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + bytes(2_000_000))

    async with Rig(tmp_path, protect=("generation", gaps.append), generation=ScriptedEngine(script)) as rig:
        assert len((await rig.post(CHAT)).body) == 2_000_000
    assert gaps == []


@on_uvloop
async def test_a_reader_that_lags_is_not_the_engines_slowness(tmp_path: Path) -> None:
    gaps: list[float] = []

    async def script(asked: Asked) -> None:
        await asked.read_body()
        await asked.send(SSE)
        for _ in range(4000):
            await asked.send(b"400\r\n" + bytes(1024) + b"\r\n")
        await asked.send(b"0\r\n\r\n")

    async with Rig(tmp_path, protect=("generation", gaps.append), generation=ScriptedEngine(script)) as rig:
        client = await rig.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.post(CHAT, b"{}")
        await asyncio.sleep(1.0)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await client.response()).body) == 4000 * 1024
    assert gaps
    assert max(gaps) < 0.8
