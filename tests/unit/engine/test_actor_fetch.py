"""What an engine's actor does when its model is not here yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memoria.engine.lifecycle import State
from memoria.vllm.facts import FetchProgress
from memoria.vllm.fetch.launch import FetchError, fetch_error
from tests.unit.actor_bench import Bench

S = State
HALF, WHOLE = FetchProgress(2**30, 2**31, 2**29), FetchProgress(2**31, 2**31)


@dataclass
class Hub:
    """`errors`: how the next fetches end."""

    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[FetchError] = field(default_factory=list)
    fetches: int = 0
    cancelled: int = 0

    async def fetch(self, on_progress: Callable[[FetchProgress], None]) -> FetchProgress:
        self.fetches += 1
        if self.errors:
            raise self.errors.pop(0)
        on_progress(HALF)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return WHOLE


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def bench(tmp_path: Path, hub: Hub) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.host.fetch = hub.fetch
    yield made
    await made.close()


async def fetching(bench: Bench) -> None:
    bench.run().start()
    await bench.until_true(lambda snapshot: snapshot.fetch is not None)


async def test_a_model_comes_before_the_queue_and_its_progress_is_shown(bench: Bench, hub: Hub) -> None:
    await fetching(bench)
    snapshot = bench.actor.snapshot
    assert (snapshot.state, snapshot.fetch, snapshot.percent) == (S.FETCHING, HALF, 50)
    assert snapshot.detail == "1.0 of 2.0 GiB, 512 MiB/s, 2 s left"
    assert bench.host.tickets == []
    hub.may_end.set()
    await bench.until(S.READY)
    assert bench.states == [S.QUEUED, S.FETCHING, S.QUEUED, S.STARTING, S.READY]
    assert bench.actor.snapshot.fetch is None
    entry = await bench.until_told("fetched")
    assert entry.detail == "2.0 GiB fetched"


async def test_a_stop_ends_it(bench: Bench, hub: Hub) -> None:
    await fetching(bench)
    bench.actor.stop()
    await bench.until(S.STOPPED)
    await bench.stopped()
    assert hub.cancelled == 1
    assert bench.host.starts == []


async def test_what_no_repetition_helps_fails_the_engine_with_the_next_step(bench: Bench, hub: Hub) -> None:
    hub.errors = [fetch_error("gated", {"model": "org/name"}, {})]
    bench.run().start()
    await bench.until(S.FAILED)
    diagnosis = bench.actor.snapshot.diagnosis
    assert diagnosis is not None
    assert diagnosis.cause == "model `org/name` is gated: its licence must be accepted on its page"
    assert "https://huggingface.co/org/name" in diagnosis.hint
    assert diagnosis.kind == "hub"
    assert bench.host.starts == []
    bench.actor.start()
    hub.may_end.set()
    await bench.until(S.READY)


async def test_a_network_that_is_down_uses_up_no_attempt(bench: Bench, hub: Hub) -> None:
    down = fetch_error("network", {"model": "org/name", "text": "Connection refused"}, {})
    hub.errors = [down] * (bench.policy.attempts + 3)
    hub.may_end.set()
    bench.run().start()
    await bench.until(S.BACKOFF, S.READY)
    assert hub.fetches == bench.policy.attempts + 4
    assert S.FAILED not in bench.states


async def test_a_file_that_is_damaged_again_and_again_is_given_up(bench: Bench, hub: Hub) -> None:
    damaged = fetch_error("damaged", {"model": "org/name", "text": "1 bytes instead of 2"}, {})
    hub.errors = [damaged] * 100
    bench.run().start()
    await bench.until(S.FAILED)
    assert hub.fetches == bench.policy.attempts
