"""The GPU kit without a GPU: it is skipped with its reason, and its dry run ends with a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.conftest import DRY_RUN

ROOT = Path(__file__).parents[2]


def test_a_dry_run_ends_with_a_report() -> None:
    ended = _run("each_engine_stays or was_planned or fit_check", {DRY_RUN: "stub"})
    assert ended.returncode == 0, ended.stdout
    begin, end = ended.stdout.index("\n{\n"), ended.stdout.rindex("\n}\n")
    report = json.loads(ended.stdout[begin : end + 2])
    assert report["dry_run"] is True
    assert set(report) >= {"memory", "planned", "boundary", "gpu", "python"}


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU: `pytest tests/gpu -m gpu` is it")
def test_without_a_gpu_it_is_skipped_and_says_why() -> None:
    ended = _run("each_engine_stays", {})
    assert "1 skipped" in ended.stdout
    assert "no NVIDIA GPU" in ended.stdout
    assert "GPU report" not in ended.stdout


def _run(wanted: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "gpu",
            "tests/gpu",
            "-k",
            wanted,
        ],
        cwd=ROOT,
        env=kept | env,
        capture_output=True,
        text=True,
        check=False,
    )
