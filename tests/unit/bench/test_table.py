"""How the relay's benchmark makes ratios."""

from __future__ import annotations

import pytest

from tests.bench.relay import table
from tests.bench.relay.measures import FIGURES, Figure

RATE = Figure("rate", "rate", "1/s")
LATENCY = Figure("latency", "latency", "us", added=True)


def test_a_ratio_is_taken_within_a_round() -> None:
    """The machine was twice as fast in the second round; that is no gain of anybody's."""
    rounds = [
        {"memoria": {"rate": 50.0}, "nginx": {"rate": 100.0}},
        {"memoria": {"rate": 100.0}, "nginx": {"rate": 200.0}},
        {"memoria": {"rate": 60.0}, "nginx": {"rate": 100.0}},
    ]
    assert table.ratio(RATE, rounds, "nginx") == pytest.approx(0.5)


def test_added_latency_is_what_the_upstream_does_not_take_by_itself() -> None:
    rounds = [{"direct": {"latency": 10.0}, "memoria": {"latency": 40.0}, "nginx": {"latency": 30.0}}]
    assert table.values(LATENCY, rounds, "memoria") == [30.0]
    assert table.ratio(LATENCY, rounds, "nginx") == pytest.approx(1.5)


def test_what_was_not_measured_is_unknown() -> None:
    rounds = [{"direct": {}, "memoria": {"small": 10.0}, "nginx": {}}]
    header, first, *_ = table.rows(rounds, ["memoria", "nginx"])
    assert header == ("", "memoria", "nginx", "memoria / nginx")
    assert first == ("small requests, 32 connections (1/s)", "10", table.UNKNOWN, table.UNKNOWN)


def test_the_markdown_has_a_line_for_each_figure() -> None:
    lines = table.as_markdown(table.rows([], ["memoria"])).splitlines()
    assert lines[:2] == ["|  | memoria |", "| --- | --: |"]
    assert len(lines) == 2 + len(FIGURES)
