"""The event loop's delay, and what held it up."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from memoria.admin.telemetry.exposition import Exposition
from memoria.admin.telemetry.loop_lag import LoopLag, _Worked
from memoria.aio import in_daemon_thread


async def until_seen(lag: LoopLag) -> None:
    """Until the loop was looked at once more."""
    before = sum(lag.seen.counts)
    async with asyncio.timeout(10):
        while sum(lag.seen.counts) == before:  # noqa: ASYNC110
            await asyncio.sleep(0)


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def held_up(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "held up" in record.getMessage()]


@pytest.mark.parametrize("work", [compute, time.sleep], ids=["in Python", "in a call into C"])
async def test_what_holds_up_the_loop_is_measured_and_named(
    loop_lag: LoopLag, caplog: pytest.LogCaptureFixture, work: object
) -> None:
    assert callable(work)
    await until_seen(loop_lag)
    work(0.3)
    await until_seen(loop_lag)
    assert 0.29 < loop_lag.longest < 5
    (said,) = held_up(caplog)
    here = rf"\({re.escape(str(Path(__file__).relative_to(Path.cwd())))}:\d+\)"
    inner = rf"compute {here} < " if work is compute else ""
    test = rf"test_what_holds_up_the_loop_is_measured_and_named {here}"
    assert re.fullmatch(rf"the event loop was held up for \d\.\d\d s by {inner}{test} < .*", said)


def call_that_keeps_the_lock(seconds: float) -> Callable[[], object]:
    """A single call into C, which no other thread of Python runs beside."""
    text = bytes(1 << 16)
    while True:
        began = time.thread_time()
        text.count(b"01")
        if time.thread_time() - began >= seconds:
            return partial(text.count, b"01")
        text *= 2


@pytest.mark.parametrize("aside", [False, True], ids=["of the loop", "of another thread"])
async def test_a_call_that_lets_no_thread_look_is_known_by_its_processor_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, aside: bool
) -> None:
    call = call_that_keeps_the_lock(0.2)
    monkeypatch.setattr(LoopLag, "_find", lambda _: None)  # it may get the lock in time
    lag = LoopLag(busy=0.001, idle=0.001)
    with lag.watching():
        await until_seen(lag)
        if aside:
            await in_daemon_thread(call)
        else:
            call()
        await until_seen(lag)
    (said,) = held_up(caplog)
    who = "another thread of memoria" if aside else "itself"
    computed = "0.0" if aside else "0.[1-9]"
    assert re.search(rf"s by {who}, .*; its thread computed for {computed}", said), said


def test_a_machine_that_ran_other_programs_is_not_the_loops_fault() -> None:
    assert "other programs" in _Worked(0.01, 0.02).unseen_by(0.1)


async def test_one_line_stands_for_many_delays_in_a_row(
    loop_lag: LoopLag, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        compute(0.12)
        await until_seen(loop_lag)
    assert len(held_up(caplog)) == 1
    assert sum(loop_lag.seen.counts[7:]) >= 3


async def test_a_loop_that_works_is_looked_at_more_often() -> None:
    lag = LoopLag(busy=0.001, idle=3600, work=0)
    with lag.watching():
        lag._look()
        await until_seen(lag)  # not in an hour


async def test_the_delays_are_a_histogram_and_a_longest(loop_lag: LoopLag) -> None:
    compute(0.03)
    await until_seen(loop_lag)
    text = Exposition(loop_lag.families()).render().decode()
    buckets = [
        int(count) for count in re.findall(r"^memoria_event_loop_lag_seconds_bucket.* (\d+)$", text, re.M)
    ]
    assert len(buckets) == len(loop_lag.seen.bounds) + 1
    assert buckets == sorted(buckets)
    (longest,) = re.findall(r"^memoria_event_loop_lag_max_seconds (\S+)$", text, re.M)
    assert 0.028 < float(longest) < 5
