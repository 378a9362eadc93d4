"""Two real engines that do not fit beside each other, in turns: no stream is broken, no token differs."""

from __future__ import annotations

import statistics

import pytest

from tests.bench.swap import measure


@pytest.mark.parametrize("swaps", [2, pytest.param(20, marks=pytest.mark.long)])
def test_swaps_under_load_break_no_stream(swaps: int) -> None:
    result = measure(swaps=swaps, streams=4)
    assert result.wrong == []
    assert result.streams >= result.wakes
    assert result.took_over >= swaps // 2


@pytest.mark.long
def test_a_swap_with_a_standby_is_quicker_than_a_first_start() -> None:
    """It costs what lies behind the gate, and the other engine's end. See `tests.bench.swap`."""
    result = measure(swaps=4, streams=0)
    assert result.wrong == []
    assert result.took_over == 4
    assert statistics.median(result.swaps) < statistics.median(result.first_starts)
