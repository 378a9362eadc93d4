"""A minute of saturation as a test. Longer: `python -m tests.faults.saturation --minutes N`."""

from __future__ import annotations

import pytest

from tests.faults.report import Figure
from tests.faults.saturation import MOST, saturate
from tests.faults.verdict import Verdict
from tests.integration.daemon import Box

SECONDS = 60.0


@pytest.mark.faults
def test_saturated_engines_are_not_taken_for_hung(box: Box, figure: Figure) -> None:
    report = saturate(box, SECONDS)
    print("\n".join(report.lines()))
    assert not report.wrong()
    whole = sum(result.verdict is Verdict.WHOLE for result in report.results)
    assert whole > MOST
    figure(4, "saturated: answers", whole)
    figure(4, "saturated: suspicions", report.suspected)
    figure(4, "saturated: false restarts", report.restarts)
