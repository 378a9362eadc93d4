"""Every test here is marked `gpu`, and skipped where there is none. The report is printed at the end."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memoria import __version__
from memoria.gpu import open_reader
from tests.gpu.box import GpuBox, is_dry, why_not

HERE = Path(__file__).parent
_report: dict[str, Any] = {}


@pytest.fixture(scope="session")
def gpu() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def report(gpu: None) -> dict[str, Any]:
    """What is put into it is in the report."""
    return _report


@pytest.fixture
def gpu_box(gpu: None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GpuBox]:
    box = GpuBox(tmp_path, request.getfixturevalue("nvml_library") if is_dry() else None)
    yield box
    box.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _report:
        return
    report = {"dry_run": is_dry(), "at": time.strftime("%Y-%m-%d %H:%M"), **_machine(), **_report}
    text = json.dumps(report, indent=2)
    terminalreporter.section("GPU report")
    terminalreporter.write_line(text)
    if not is_dry():
        name = f"{time.strftime('%Y-%m-%d')}-{report['gpu'].replace(' ', '-').lower()}.json"
        (HERE / "results" / name).write_text(text + "\n")
        terminalreporter.write_line(f"written to tests/gpu/results/{name}")


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "gpu": "stub",
        "driver": None,
        "memoria": __version__,
    }
    if not is_dry():
        reader = open_reader("cuda")
        facts |= {"gpu": reader.snapshot(0).name, "driver": reader.driver()}
        reader.close()
    return facts
