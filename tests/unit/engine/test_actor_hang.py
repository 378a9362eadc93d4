"""What an engine's actor does with an engine that hangs, or only seems to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.engine.lifecycle import State
from memoria.engine.start import Pauses
from memoria.engine.traffic import Flow
from tests.fakes import until
from tests.unit.actor_bench import Bench

S = State


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    made.pauses = Pauses(second_look=0.02, stacks=0.0)
    made.timeouts = replace(made.timeouts, hang=0.12)
    yield made
    await made.close()


async def test_an_engine_that_hangs_is_suspected_then_killed_and_comes_back(bench: Bench) -> None:
    bench.host.moves = False
    actor = await bench.ready()
    actor.traffic.began()
    await bench.until(S.SUSPECT)
    assert actor.snapshot.detail.startswith("no progress for ")
    await bench.until(S.STOPPING, S.RELEASING, S.BACKOFF)
    assert actor.snapshot.diagnosis is not None
    assert actor.snapshot.diagnosis.cause.startswith("hung: no progress for ")
    actor.traffic.ended()
    await bench.until(S.QUEUED, S.STARTING, S.READY)


async def test_whether_the_core_works_is_known_beyond_the_next_sample(bench: Bench) -> None:
    actor = await bench.ready()
    began = time.monotonic()
    await until(lambda: actor.traffic.works_until > began + 0.1)  # some samples later
    assert actor.traffic.works_until <= time.monotonic() + 2 * 0.12 / 12
    bench.host.moves = False
    await until(lambda: actor.traffic.works_until < time.monotonic())


async def test_an_engine_that_answers_at_the_second_look_serves_on(bench: Bench) -> None:
    bench.host.moves = False
    actor = await bench.ready()
    pid = actor.snapshot.pid
    actor.traffic.began()
    bench.host.answering.set()
    await bench.until(S.SUSPECT, S.READY, S.SUSPECT, S.READY)
    assert actor.snapshot.pid == pid


async def test_an_engine_that_moves_at_the_second_look_serves_on(bench: Bench) -> None:
    bench.host.moves = False
    await bench.ready()
    bench.actor.traffic.began()
    await bench.until(S.SUSPECT)
    bench.host.moves = True
    await bench.until(S.READY)


async def test_an_engine_that_has_moved_by_the_first_of_two_looks_serves_on(
    bench: Bench,
) -> None:
    """Two looks must agree: it is not enough that the second sees nothing new."""
    bench.pauses = Pauses(second_look=60.0, stacks=0.0)
    bench.host.moves = False
    actor = await bench.ready()
    actor.traffic.began()
    await bench.until(S.SUSPECT)
    bench.host.tokens += 1
    await bench.until(S.READY)


async def test_an_engine_that_sends_is_not_suspected_however_slow_its_figures_are(bench: Bench) -> None:
    bench.host.figures = None
    actor = await bench.ready()
    heard = 0

    def flow() -> Flow:
        nonlocal heard
        heard += 1
        return 1, heard

    actor.traffic.flow = flow
    await until(lambda: heard > 30)
    assert S.SUSPECT not in bench.states


async def test_requests_that_wait_for_their_clients_do_not_count(bench: Bench) -> None:
    """As a tunnel in which nobody speaks, or a reader that takes its time."""
    bench.host.moves = False
    bench.host.answering.set()
    actor = await bench.ready()
    looks = 0

    def flow() -> Flow:
        nonlocal looks
        looks += 1
        return 0, 0

    actor.traffic.began()
    actor.traffic.flow = flow
    await until(lambda: looks > 30)
    assert S.SUSPECT not in bench.states


async def test_a_frozen_engine_without_figures_is_found_by_asking_it(bench: Bench) -> None:
    bench.host.figures = ()
    actor = await bench.ready()
    actor.traffic.began()
    await bench.until(S.SUSPECT)
    assert actor.snapshot.detail == "it did not answer a request of memoria's own"
    await bench.until(S.STOPPING, S.RELEASING, S.BACKOFF)


async def test_a_busy_engine_without_figures_that_answers_is_not_suspected(bench: Bench) -> None:
    bench.host.figures = ()
    bench.host.answering.set()
    actor = await bench.ready()
    actor.traffic.began()
    await until(lambda: bench.host.asked > 3)
    assert S.SUSPECT not in bench.states


async def test_an_idle_engine_that_no_longer_answers_is_found(bench: Bench) -> None:
    actor = await bench.ready()
    bench.host.moves = False
    await bench.until(S.SUSPECT)
    assert actor.snapshot.detail == "it did not answer a request of memoria's own"
    await bench.until(S.STOPPING)


async def test_vllms_own_watchdog_shortens_the_wait(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, hang=1000.0)
    bench.host.moves = False
    actor = await bench.ready()
    with bench.log.path.open("a") as log:
        log.write("ERROR watchdog: the engine loop is stuck\n")
    await bench.until(S.SUSPECT)
    assert actor.snapshot.detail == "vLLM's watchdog has fired"


async def test_a_suspect_can_be_stopped(bench: Bench) -> None:
    bench.host.moves = False
    actor = await bench.ready()
    actor.traffic.began()
    await bench.until(S.SUSPECT)
    actor.stop()
    actor.traffic.ended()
    await bench.until(S.DRAINING, S.STOPPING, S.RELEASING, S.STOPPED)


async def test_without_patience_nothing_is_suspected(bench: Bench) -> None:
    bench.timeouts = replace(bench.timeouts, hang=0.0)
    bench.host.moves = False
    actor = await bench.ready()
    actor.traffic.began()
    assert bench.host.tokens == 0  # it is not even asked
    assert S.SUSPECT not in bench.states


async def test_another_patience_counts_for_the_start_that_is_there(bench: Bench) -> None:
    """The one from before would last longer than this test may."""
    short = bench.timeouts
    bench.timeouts = replace(short, hang=12.0)
    bench.host.moves = False
    actor = await bench.ready()
    actor.traffic.began()
    actor.adopt(bench.host, short, bench.policy)
    await bench.until(S.SUSPECT)
