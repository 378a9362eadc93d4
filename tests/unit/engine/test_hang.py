"""When an engine is held to hang: the pure policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.engine.hang import IDLE_PATIENCES, HangDetector, Sample


class Watched:
    """Samples of an engine, every ten seconds."""

    def __init__(self) -> None:
        self.detector = HangDetector(patience=120)
        self.at = 0.0

    def see(
        self, *, in_flight: int, progress: object = 0, times: int = 1, answers: bool = True, heard: int = 0
    ) -> Watched:
        for _ in range(times):
            figures = ((b"tokens", str(progress).encode()),) if answers else None
            self.detector.see(Sample(self.at, in_flight, figures, heard))
            self.at += 10
        return self


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_requests_in_flight_and_no_movement_is_a_hang_when_patience_is_over(watched: Watched) -> None:
    assert not watched.see(in_flight=1, times=12).detector.silent
    assert watched.see(in_flight=1).detector.silent


def test_an_engine_that_does_not_even_say_how_it_does_is_silent(watched: Watched) -> None:
    watched.see(in_flight=1)
    assert watched.see(in_flight=1, answers=False, times=12).detector.silent


def test_a_long_prefill_that_fills_the_cache_is_no_hang(watched: Watched) -> None:
    for chunk in range(100):
        assert not watched.see(in_flight=1, progress=chunk // 11).detector.silent


def test_time_without_requests_neither_counts_nor_excuses(watched: Watched) -> None:
    watched.see(in_flight=1, times=7).see(in_flight=0, times=1000)
    assert watched.detector.silent_for == 70
    assert watched.see(in_flight=1, times=6).detector.silent


def test_the_core_worked_when_its_own_figures_had_moved(watched: Watched) -> None:
    """Bytes of one answer say nothing of the others, which may wait in vLLM's queue."""
    watched.see(in_flight=1).see(in_flight=1, progress=1)
    assert watched.detector.worked_at == 10
    watched.see(in_flight=1, progress=1, heard=1, times=3).see(in_flight=1, answers=False)
    assert watched.detector.worked_at == 10


def test_bytes_on_their_way_are_movement_whatever_the_figures_say(watched: Watched) -> None:
    for heard in range(100):
        assert not watched.see(in_flight=1, answers=False, heard=heard).detector.silent


def test_without_figures_it_is_asked_before_it_is_suspected() -> None:
    detector = HangDetector(patience=10)
    for second in range(10):
        detector.see(Sample(second, 1, ()))
    assert not detector.wants_canary()
    detector.see(Sample(10, 1, ()))
    assert detector.silent
    assert detector.blind
    assert detector.wants_canary()
    detector.answered()
    assert not detector.wants_canary()


def test_an_idle_engine_is_asked_after_long_and_then_after_long_again(watched: Watched) -> None:
    seconds = 120 * IDLE_PATIENCES
    assert not watched.see(in_flight=0, times=seconds // 10).detector.wants_canary()
    assert watched.see(in_flight=0).detector.wants_canary()
    watched.detector.answered()
    assert not watched.see(in_flight=0).detector.wants_canary()


@given(st.lists(st.tuples(st.floats(0.1, 60), st.integers(0, 3), st.booleans()), max_size=60))
def test_only_seconds_with_requests_and_without_movement_add_up(
    steps: list[tuple[float, int, bool]],
) -> None:
    detector, at, tokens, before = HangDetector(patience=120), 0.0, 0, 0
    stood = 0.0
    for seconds, in_flight, moves in steps:
        at += seconds
        tokens += moves
        moved = detector.see(Sample(at, in_flight, ((b"tokens", b"%d" % tokens),)))
        stood = 0.0 if moved else stood + (seconds if before else 0)
        before = in_flight
        assert detector.silent_for == pytest.approx(stood)


def test_it_looks_often_enough_to_tell_within_thirty_seconds_more() -> None:
    assert HangDetector(patience=120).period == 10
    assert HangDetector(patience=1.2).period == pytest.approx(0.1)
    assert HangDetector(patience=0).period == 10
