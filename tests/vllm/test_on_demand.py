"""Two real engines that do not fit beside each other, in turns: no stream is broken, no token differs."""

from __future__ import annotations

import statistics

import pytest

from tests.bench.swap import measure

pytestmark = pytest.mark.long  # minutes; the same turns with stub engines are in tests/integration


def test_swaps_under_load_break_no_stream() -> None:
    result = measure(swaps=6, streams=4)
    assert result.wrong == []
    assert result.streams >= result.wakes
    assert result.took_over >= 4


def test_a_swap_with_a_standby_is_quicker_than_a_first_start() -> None:
    """It costs what lies behind the gate, and the other engine's end. See `tests.bench.swap`."""
    result = measure(swaps=4, streams=0)
    assert result.wrong == []
    assert result.took_over == 4
    assert statistics.median(result.swaps) < statistics.median(result.first_starts)
