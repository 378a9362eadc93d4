"""What `mps: true` is refused for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memoria.preflight.mps import CONTROL, enforces_memory, limits_in_words, mps_errors
from tests.unit.plans import config


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / CONTROL
    program.touch()
    program.chmod(0o755)
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("driver", "enforced"),
    [("470.256.02", False), ("495.29", True), ("580.00.stub", True), ("", True), ("next", True)],
)
def test_the_driver_says_whether_memory_limits_hold(
    environ: dict[str, str], driver: str, enforced: bool
) -> None:
    plain = config({"a": "0.5", "b": "0.3"})
    first = replace(plain.engines[0], pinned_memory=2**30)
    limited = replace(plain, mps=True, engines=(first, *plain.engines[1:]))
    found = [
        problem.what for error in mps_errors(limited, None, driver, environ) for problem in error.problems
    ]
    assert found == ([] if enforced else [f"driver {driver} does not enforce `pinned_memory` (a)"])
    assert enforces_memory(driver) is enforced
    assert ("from 495 on" in limits_in_words(driver)) is not enforced
    assert list(mps_errors(replace(plain, mps=True), None, driver, environ)) == []


def test_without_mps_nothing_is_looked_for() -> None:
    assert list(mps_errors(config({"a": "0.5"}), None, "470.1", {"PATH": ""})) == []
