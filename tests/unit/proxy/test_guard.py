from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.proxy.admission.guard import PERIOD, GuardState, LatencyGuard

TARGET = 0.050


def gaps(guard: LatencyGuard, seconds: float, count: int = 100) -> None:
    for _ in range(count):
        guard.observe(seconds)


def test_nobody_is_held_back_while_tokens_come_in_time() -> None:
    guard = LatencyGuard(TARGET, 256)
    for _ in range(10):
        gaps(guard, 0.020)
        assert guard.step(in_flight=256) == 256
    assert guard.state.limit is None
    assert guard.state.gap_p95 == pytest.approx(0.020, rel=0.13)


def test_late_tokens_halve_what_the_neighbours_really_have_in_flight() -> None:
    guard = LatencyGuard(TARGET, 1024)
    gaps(guard, 0.080)
    assert guard.step(in_flight=40) == 20
    assert guard.state.limit == 20
    assert guard.state.lowered == 1
    assert guard.state.gap_p95 == pytest.approx(0.080, rel=0.13)


def test_a_fall_is_given_time_to_take_effect() -> None:
    guard = LatencyGuard(TARGET, 64)
    gaps(guard, 0.080)
    assert guard.step(in_flight=64) == 32
    gaps(guard, 0.080)
    assert guard.step(in_flight=50) == 32
    gaps(guard, 0.080)
    assert guard.step(in_flight=32) == 16


def test_when_tokens_are_in_time_again_the_limit_nears_what_was_too_much_and_stays_there_for_a_while() -> (
    None
):
    guard = LatencyGuard(TARGET, 256)
    gaps(guard, 0.080)
    guard.step(in_flight=40)
    limits = []
    for _ in range(30):
        gaps(guard, 0.020)
        limits.append(guard.step(in_flight=guard.limit))
    assert limits[:5] == [25, 29, 33, 35, 37]
    assert limits[5:14] == [38, 39, 39, 39, 40, 40, 40, 40, 41]
    assert limits[14:] == [42, 44, 46, 50, 54, 60, 66, 74, 83, 94, 107, 121, 138, 156, 177, 200]
    assert guard.state.lowered == 1


@pytest.mark.parametrize("ceiling", [2, 64, 256, 1024])
def test_from_one_it_is_back_at_the_ceiling_within_a_minute(ceiling: int) -> None:
    guard = LatencyGuard(TARGET, ceiling)
    gaps(guard, 0.080)
    assert guard.step(in_flight=1) == 1
    periods = 0
    while guard.limit < ceiling:
        gaps(guard, 0.020)
        guard.step(in_flight=guard.limit)
        periods += 1
    assert periods * PERIOD <= 60
    assert guard.state.limit is None


def test_one_always_remains() -> None:
    guard = LatencyGuard(TARGET, 8)
    for _ in range(20):
        gaps(guard, 1.0)
        guard.step(in_flight=guard.limit)
    assert guard.limit == 1
    assert guard.state.lowered == 3


def test_neighbours_who_do_nothing_are_not_to_blame() -> None:
    guard = LatencyGuard(TARGET, 8)
    gaps(guard, 1.0)
    assert guard.step(in_flight=0) == 8


@pytest.mark.parametrize(("late", "limit"), [(5, 81), (6, 32)])
def test_one_gap_in_twenty_may_be_late(late: int, limit: int) -> None:
    guard = LatencyGuard(TARGET, 128)
    gaps(guard, 0.080)
    guard.step(in_flight=128)
    gaps(guard, 0.080, late)
    gaps(guard, 0.020, 100 - late)
    assert guard.step(in_flight=64) == limit


def test_a_few_gaps_are_gathered_over_some_periods() -> None:
    guard = LatencyGuard(TARGET, 8)
    limits = []
    for _ in range(4):
        gaps(guard, 0.080, 2)
        limits.append(guard.step(in_flight=8))
    assert limits == [8, 8, 8, 4]


def test_an_idle_engine_needs_no_protection() -> None:
    guard = LatencyGuard(TARGET, 64)
    gaps(guard, 0.080)
    guard.step(in_flight=64)
    for _ in range(19):
        assert guard.step(in_flight=32) == 32
    assert guard.step(in_flight=32) == 64
    assert guard.state == GuardState(None, None, 1)


@given(
    ceiling=st.integers(1, 2000),
    periods=st.lists(st.tuples(st.lists(st.floats(0, 1e6), max_size=30), st.integers(0, 3000)), max_size=40),
)
def test_the_limit_stays_between_one_and_the_ceiling_and_moves_by_the_rules(
    ceiling: int, periods: list[tuple[list[float], int]]
) -> None:
    guard = LatencyGuard(TARGET, ceiling)
    for seen, in_flight in periods:
        before, lowered = guard.limit, guard.state.lowered
        for gap in seen:
            guard.observe(gap)
        after = guard.step(in_flight)
        assert after == guard.limit
        assert 1 <= after <= ceiling
        assert after >= before or after == max(1, in_flight // 2)
        assert guard.state.lowered - lowered == (after < before)


@dataclass
class Box:
    """A GPU on a fake clock: tokens come every `base + share * n` seconds while `n` embeddings run. Each
    embedding takes `embed_s`, and a new one is always waiting for the place."""

    base: float
    share: float
    guard: LatencyGuard
    embed_s: float = 0.3
    noise: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 0.0
    ends: deque[float] = field(default_factory=deque)

    def period(self, streams: int = 8) -> float:
        """Half a second of `streams` streams; returns the share of gaps that were late."""
        until, late, seen, peak = self.now + PERIOD, 0, 0, len(self.ends)
        while self.now < until:
            while self.ends and self.ends[0] <= self.now:
                self.ends.popleft()
            while len(self.ends) < self.guard.limit:
                self.ends.append(self.now + self.embed_s)
            peak = max(peak, len(self.ends))
            gap = self.base + self.share * len(self.ends)
            self.now += gap
            for _ in range(streams):
                noisy = gap * self.noise.uniform(0.9, 1.1)
                self.guard.observe(noisy)
                late += noisy > TARGET
                seen += 1
        self.guard.step(peak)
        return late / seen


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.003])
def test_the_limit_converges_to_what_the_protected_engine_can_bear(share: float) -> None:
    box = Box(base=0.015, share=share, guard=LatencyGuard(TARGET, 512))
    bearable = (TARGET / 1.1 - box.base) / share
    for _ in range(600):
        box.period()
    late: list[float] = []
    limits: list[int] = []
    for _ in range(200):
        late.append(box.period())
        limits.append(box.guard.limit)
    assert max(limits) <= bearable * 1.1 + 2
    assert min(limits) >= bearable * 0.4 - 2
    assert sum(limits) / len(limits) >= bearable * 0.6
    assert sum(late) / len(late) < 0.15


def test_a_burst_of_a_thousand_neighbours_is_tamed_within_seconds() -> None:
    box = Box(base=0.015, share=0.001, guard=LatencyGuard(TARGET, 1024))
    while box.period() > 0.05:
        assert box.now < 10


def test_where_nothing_helps_one_neighbour_is_left_and_more_come_when_it_gets_better() -> None:
    box = Box(base=0.080, share=0.001, guard=LatencyGuard(TARGET, 64))
    for _ in range(40):
        box.period()
    assert box.guard.limit == 1
    box.base = 0.010
    for _ in range(200):
        box.period()
    assert box.guard.limit > 15
