"""A minute of saturation as a test. Longer: `python -m tests.faults.saturation --minutes N`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import Figure
from tests.faults.saturation import KEYS, MOST, STUB_FAULTS, WORDS, Report, saturate, stub_keys
from tests.faults.target import of_stub, of_vllm
from tests.faults.verdict import Verdict
from tests.integration.daemon import Box

pytestmark = pytest.mark.faults

SECONDS = 60.0


def test_saturated_engines_are_not_taken_for_hung(box: Box, figure: Figure) -> None:
    report = saturate(of_stub(box, STUB_FAULTS, **stub_keys()), SECONDS)
    _judge(report, figure, "stub")


def test_saturated_real_engines_are_not_taken_for_hung(tmp_path: Path, figure: Figure) -> None:
    daemon = of_vllm(tmp_path, WORDS, engine={"max_requests": MOST}, **KEYS)
    try:
        report = saturate(daemon, SECONDS)
    finally:
        daemon.stop()
    _judge(report, figure, "vLLM")


def _judge(report: Report, figure: Figure, engines: str) -> None:
    print("\n".join(report.lines()))
    whole = sum(result.verdict is Verdict.WHOLE for result in report.results)
    figure(4, f"{engines} saturated: answers", whole)
    figure(4, f"{engines} saturated: refused, cut or wrong", len(report.wrong()))
    figure(4, f"{engines} saturated: longest stream", report.waits[-1], "s")
    figure(4, f"{engines} saturated: suspicions", report.suspected)
    figure(4, f"{engines} saturated: false restarts", report.restarts)
    assert report.wrong() == []
    assert whole > MOST
