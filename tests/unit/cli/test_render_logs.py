"""Lines of several logs on one screen."""

from __future__ import annotations

from datetime import datetime
from heapq import merge
from itertools import repeat

from memoria.cli.commands.logs import LOOK_AHEAD, UNKNOWN, dated

NOW = datetime(2026, 1, 2, 12)


def line(clock: str, text: str) -> str:
    return f"INFO 01-02 {clock} [core.py:1] {text}"


def times(*texts: str) -> list[str]:
    return [f"{made.at:%H:%M}" for made in dated("engine", texts, NOW)]


def test_a_line_without_a_time_belongs_to_the_one_above() -> None:
    assert times(line("10:00:00", "a"), "b", line("10:05:00", "c"), "d") == [
        "10:00",
        "10:00",
        "10:05",
        "10:05",
    ]


def test_at_the_beginning_it_belongs_to_the_one_below() -> None:
    assert times("  File", "ValueError", line("10:05:00", "c")) == ["10:05"] * 3


def test_times_never_go_back() -> None:
    assert times(line("10:05:00", "a"), line("10:00:00", "b"), line("10:06:00", "c")) == [
        "10:05",
        "10:05",
        "10:06",
    ]


def test_a_log_without_times_is_not_held_in_memory() -> None:
    endless = dated("engine", repeat("no time"), NOW)
    assert [next(endless).at for _ in range(LOOK_AHEAD * 2)] == [UNKNOWN] * LOOK_AHEAD * 2


def test_logs_are_merged_by_their_times() -> None:
    one = dated("one", [line("10:00:00", "a"), "of a", line("10:10:00", "b")], NOW)
    two = dated("two", [line("10:05:00", "x"), "of x"], NOW)
    merged = [(made.engine, made.text[-1]) for made in merge(one, two, key=lambda made: made.at)]
    assert merged == [("one", "a"), ("one", "a"), ("two", "x"), ("two", "x"), ("one", "b")]
