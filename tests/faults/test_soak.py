"""The soak as a test: two minutes of it. Longer: `python -m tests.faults.soak --minutes N`."""

from __future__ import annotations

from tests.faults.report import Figure
from tests.faults.soak import STUB_FAULTS, soak
from tests.faults.target import of_stub
from tests.faults.verdict import FAILED
from tests.integration.daemon import Box

SECONDS = 120.0


def test_two_minutes_of_everything_leave_no_trace(box: Box, figure: Figure) -> None:
    report = soak(of_stub(box, STUB_FAULTS), SECONDS)
    print("\n".join(report.lines()))
    assert report.wrong() == []
    figure(40, "requests", len(report.results))
    figure(40, "failed, all explicit", sum(result.verdict in FAILED for result in report.results))
    figure(40, "kills", len(report.recoveries))
    figure(40, "longest recovery", report.recoveries[-1], "s")
    figure(40, "memory grew by", (report.end.memory - report.start.memory) / 2**20, "MiB")
    figure(40, "descriptors grew by", report.end.descriptors - report.start.descriptors)
    figure(40, "tasks grew by", report.end.tasks - report.start.tasks)
