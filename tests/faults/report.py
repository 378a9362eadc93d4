"""The figures of the faults, collected while tests run and printed at the end of the run, row by row.

The hooks and the fixture are registered by tests/conftest.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

import pytest

from tests.faults.matrix import ROWS, Row

FIGURE = "figure"


class Figure(Protocol):
    """`figure(24, "upstream closed after", 0.7, "ms")`: a measurement for a row. Of several values of one
    name the largest is printed."""

    def __call__(self, row: int, name: str, value: float, unit: str = "") -> None: ...


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    def add(row: int, name: str, value: float, unit: str = "") -> None:
        request.node.user_properties.append((FIGURE, (row, name, value, unit)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Rows without a test in this run are left out."""
    outcomes: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for kind in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(kind, []):
            if report.when == "call" or report.failed:
                outcomes[report.nodeid.partition("[")[0]].append(report)
    lines = [line for row in ROWS if (line := _line(row, outcomes))]
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)


def _line(row: Row, outcomes: dict[str, list[pytest.TestReport]]) -> str:
    reports = [report for test in row.tests for report in outcomes.get(test, [])]
    if not reports:
        return ""
    star = "*" if row.starred else " "
    return f"{row.number:3}{star} {row.fault:45}  {'; '.join(_figures(row, reports))}"


def _figures(row: Row, reports: list[pytest.TestReport]) -> Iterator[str]:
    failed = sum(report.failed for report in reports)
    if failed:
        yield f"FAILED: {failed} of {len(reports)} cases"
    elif row.none:
        yield f"0 {row.none} in {_cases(reports)}"
    else:
        yield f"as expected in {_cases(reports)}"
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number, name, value, unit in _measured(reports):
        if number == row.number:
            measured[name, unit].append(value)
    for (name, unit), values in measured.items():
        worst = f" (worst of {len(values)})" if len(values) > 1 else ""
        yield f"{name} {max(values):.4g}{unit and ' '}{unit}{worst}"


def _cases(reports: list[pytest.TestReport]) -> str:
    return f"{len(reports)} case{'s' if len(reports) > 1 else ''}"


def _measured(reports: Iterable[pytest.TestReport]) -> Iterator[tuple[int, str, float, str]]:
    for report in reports:
        for name, value in report.user_properties:
            if name == FIGURE and isinstance(value, (tuple, list)):
                yield value[0], value[1], value[2], value[3]
