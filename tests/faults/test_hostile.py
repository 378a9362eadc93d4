"""The hostile clients of tests/faults/hostile.py, each for a moment. What others feel is for the benchmark to
say: here all share the machine."""

from __future__ import annotations

import pytest

from tests.faults.hostile import ROWS, measure
from tests.integration.daemon import Box

pytestmark = pytest.mark.faults
LONGEST_MS = 20.0
MOST_MIB = {5: 240.0, 8: 240.0}  # uploads: twice `hold.bytes` and one body, and a quarter


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 8])
def test_a_hostile_client_does_not_hold_up_the_loop(box: Box, number: int) -> None:
    found = measure(number, box, seconds=2.0, rounds=1)
    assert found.sent > 0
    assert found.answered or number == 8
    assert found.failures == 0
    assert found.processor < LONGEST_MS, found.line(number, ROWS[number])
    assert found.grown < MOST_MIB.get(number, 80.0), found.line(number, ROWS[number])
