"""One row of the matrix."""

from __future__ import annotations

from dataclasses import dataclass

DAEMON = "tests/integration/test_daemon_"
FAULTS = "tests/faults/test_"
PROXY = "tests/integration/test_proxy_"
REAL = "tests/vllm/test_"
UNIT = "tests/unit/"


@dataclass(frozen=True, slots=True)
class Row:
    """`starred`: one of those that matter most, so at least one of its tests runs with the whole suite."""

    number: int
    fault: str
    expected: str
    tests: tuple[str, ...]
    none: str = ""
    starred: bool = False
