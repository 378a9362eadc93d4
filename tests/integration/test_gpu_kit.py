"""The GPU kit without a GPU: it is skipped with its reason, its dry run measures every part, and its reports
are kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gpu import by_hand, report
from tests.gpu.box import GpuBox, Wish, core_of
from tests.gpu.budget import PARTS, SLOWNESS, Budget, OutOfTime
from tests.gpu.conftest import DRY_RUN
from tests.gpu.dry import CONTEXT_BYTES, StubBox
from tests.integration.daemon import until

ROOT = Path(__file__).parents[2]
BUDGET = 440.0  # seconds
FACTS: dict[str, Any] = {"machine": {"gpu": "NVIDIA H200", "driver": "580"}, "versions": {"vllm": "0.26.0"}}


@pytest.fixture
def stub(tmp_path: Path, nvml_library: Path) -> Iterator[GpuBox]:
    box = StubBox(tmp_path, nvml_library)
    yield box
    box.close()


def test_a_dry_run_measures_every_part() -> None:
    """Within its budget. A stub's parts take a third of what an H200's do, at most."""
    began = time.monotonic()
    ended = _run({DRY_RUN: "stub", SLOWNESS: "0.3"}, budget=BUDGET)
    assert ended.returncode == 0, ended.stdout
    assert time.monotonic() - began < BUDGET
    assert "skipped" not in ended.stdout
    told = _report(ended.stdout)
    assert told["dry_run"] == "stub"
    parts = told["parts"]
    assert list(parts) == list(PARTS)
    assert [name for name, part in parts.items() if part["failure"]] == []
    memory = parts["memory"]["figures"]["engines"]
    assert {engine["outside_the_fraction"] for engine in memory.values()} == {CONTEXT_BYTES}
    boundary, beside = (parts[name]["figures"] for name in ("boundary", "beside"))
    for found, free in ((boundary, boundary["total"]), (beside, beside["free"])):
        assert 0 <= free - CONTEXT_BYTES - found["vllm_starts_up_to"] <= found["vllm_step"]
        refused = [start["error"] for start in found["tried"] if not start["ready"]]
        assert refused
        assert all("is less than desired GPU memory utilization" in error for error in refused)
    assert beside["free"] == beside["total"] - memory["embedding"]["held"]
    for name in ("load", "mps"):
        assert parts[name]["figures"]["guarded"]
    assert [level["failures"] for level in parts["sleep"]["figures"].values()] == [[]]


def test_a_part_for_which_there_is_no_time_is_left_out_with_the_reason() -> None:
    ended = _run({DRY_RUN: "stub"}, "-k", "swap or boundary", budget=100)
    assert ended.returncode == 0, ended.stdout
    assert "2 skipped" in ended.stdout
    assert re.search(r"(79|80) s are left, it takes 150", ended.stdout)
    assert re.search(r"(79|80) s are left, it takes 110", ended.stdout)


def test_a_part_is_broken_off_in_time_to_end_what_it_started() -> None:
    budget = Budget(1.0, slowness=0.02)
    with pytest.raises(OutOfTime), budget.limited():
        threading.Event().wait()  # a part that hangs
    with budget.limited():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # what is over is not broken off


def test_every_part_has_its_time_and_the_order_is_that_of_worth() -> None:
    found = re.findall(r"^def test_([a-z]+)_", (ROOT / "tests/gpu/test_gpu.py").read_text(), re.M)
    assert set(found) == set(PARTS)
    text = (report.RESULTS / "README.md").read_text()
    assert [name for name in re.findall(r"^\| `([a-z]+)` \|", text, re.M) if name in PARTS] == list(PARTS)


def test_the_results_say_how_to_run_every_part_just_once() -> None:
    text = (report.RESULTS / "README.md").read_text()
    chosen = re.findall(r"pytest tests/gpu -m gpu -k '([^']+)'", text)
    words = [word for expression in chosen for word in expression.split(" or ")]
    tests = re.findall(r"^def (test_\w+)", (ROOT / "tests/gpu/test_gpu.py").read_text(), re.M)
    assert len(tests) == 10
    assert {test: [word for word in words if word in test] for test in tests} == {
        test: [test.split("_")[1]] for test in tests
    }


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU: `pytest tests/gpu -m gpu` is it")
def test_without_a_gpu_it_is_skipped_and_says_why() -> None:
    ended = _run({}, "-k", "memory")
    assert "1 skipped" in ended.stdout
    assert "no NVIDIA GPU" in ended.stdout
    assert "GPU report" not in ended.stdout


def test_a_run_of_one_part_adds_it_to_the_day_s_report(tmp_path: Path) -> None:
    first = report.save(tmp_path, "2026-11-25", FACTS, {"memory": 1, "swap": 2})
    again = report.save(tmp_path, "2026-11-25", FACTS, {"swap": 3})
    assert first == again == tmp_path / "2026-11-25-nvidia-h200.json"
    assert json.loads(first.read_text()) == {**FACTS, "parts": {"memory": 1, "swap": 3}}


def test_a_run_on_something_else_makes_a_report_of_its_own(tmp_path: Path) -> None:
    others = {**FACTS, "versions": {"vllm": "0.33.0"}}
    first = report.save(tmp_path, "2026-11-25", FACTS, {"memory": 1})
    second = report.save(tmp_path, "2026-11-25", others, {"swap": 2})
    assert second.name == "2026-11-25-nvidia-h200-2.json"
    assert report.save(tmp_path, "2026-11-25", others, {"memory": 3}) == second
    assert json.loads(first.read_text())["parts"] == {"memory": 1}
    assert json.loads(second.read_text())["parts"] == {"swap": 2, "memory": 3}


def test_a_report_tells_the_versions_of_the_vllm_it_measured(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "lib" / "python3.12" / "site-packages" / "vllm-0.26.0.dist-info").mkdir(parents=True)
    told = report.versions(str(tmp_path), "cuda")
    assert told["vllm"] == "0.26.0"
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(told) >= {"memoria", "torch", "flashinfer-python"}
    assert "does not exist" in report.versions(str(tmp_path / "nowhere"), "cuda")["vllm"]


def test_an_engine_that_ends_by_itself_is_told_by_its_first_error(stub: GpuBox) -> None:
    """Its group is gone by then: there is nobody left to kill."""
    stub.vllm.set_faults("embedding", fail_at="configuring", log=("OSError: first", "ValueError: its echo"))
    stub.want(Wish({"embedding": 0.3}))
    said = by_hand.start_together(stub, ["embedding"])["embedding"]
    assert not said.ready
    assert said.error == "OSError: first"
    assert stub.used_bytes() == 0


def test_one_that_fails_by_hand_leaves_the_other_to_be_measured_and_nothing_behind(stub: GpuBox) -> None:
    stub.vllm.set_faults("generation", fail_at="warming_up", log=("torch.OutOfMemoryError: CUDA",))
    stub.want()
    said = by_hand.start_together(stub, ["embedding", "generation"])
    assert said["embedding"].kv_tokens == 37440
    assert said["generation"].error == "OutOfMemoryError: CUDA"
    assert stub.used_bytes() == 0
    assert [event.pid for event in stub.vllm.events("spawned") if psutil.pid_exists(event.pid)] == []


def test_an_engine_that_has_failed_for_good_ends_the_wait_at_once(stub: GpuBox) -> None:
    stub.vllm.set_faults("embedding", fail_at="loading", log=("ValueError: no such thing",))
    stub.want(Wish(top={"restart": {"initial": 0.1, "attempts": 1}}))
    with pytest.raises(pytest.fail.Exception, match="embedding has failed"):
        stub.ready()


def test_a_daemon_that_has_ended_ends_the_wait_at_once(stub: GpuBox) -> None:
    stub.want(Wish({"embedding": 2.0}))
    with pytest.raises(pytest.fail.Exception, match="memoria has ended"):
        stub.ready()


def test_the_core_is_found_below_its_leader(stub: GpuBox) -> None:
    stub.want(Wish({"embedding": 0.3}))
    daemon = stub.ready()
    assert core_of(daemon.leader("embedding")) == daemon.core("embedding")
    with pytest.raises(LookupError):
        core_of(daemon.core("embedding"))


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [*_command("-k", "race or kill"), "--basetemp", str(tmp_path / "box")],
        cwd=ROOT,
        env={**_env({DRY_RUN: "stub"}), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.read(1) == "."  # the first test has passed
    until(lambda: any("MEMORIA_START" in marks for marks in _below(tmp_path)))
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == pytest.ExitCode.INTERRUPTED
    assert set(_report(out)["parts"]) == {"race"}
    assert _below(tmp_path) == []


def _below(folder: Path) -> list[str]:
    """The environments of the processes that work in there, engines among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(str(process.environ()))
    return found


def _report(output: str) -> dict[str, Any]:
    begin, end = output.index("\n{\n"), output.rindex("\n}\n")
    return dict(json.loads(output[begin : end + 2]))


def _command(*arguments: str, budget: float | None = None) -> list[str]:
    if budget is not None:
        return [sys.executable, "-m", "tests.gpu", str(budget), *arguments]
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return [*pytest_, "-m", "gpu", "tests/gpu", *arguments]


def _env(env: dict[str, str]) -> dict[str, str]:
    ours = ("PYTEST_", "MEMORIA_GPU_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | env


def _run(
    env: dict[str, str], *arguments: str, budget: float | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments, budget=budget),
        cwd=ROOT,
        env=_env(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=450,
    )
