"""Which GPU or MIG slice an engine gets, through `check`, `plan`, `run`, `status` and `/metrics`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from memoria.text import GIB
from tests.integration.daemon import Box
from tests.stub_nvml import StubGpu, StubProcess, StubSlice

GPUS = [
    StubGpu(100 * GIB, used=99 * GIB, uuid="GPU-aaaa-0", name="NVIDIA First"),
    StubGpu(100 * GIB, uuid="GPU-bbbb-0", name="NVIDIA Second"),
]
SLICES = [
    StubSlice(40 * GIB, "MIG-1111-0", gpu=1, number=0, name="NVIDIA Second MIG 3g.40gb"),
    StubSlice(20 * GIB, "MIG-2222-0", gpu=1, number=2, name="NVIDIA Second MIG 2g.20gb"),
]


def variable(pid: int, name: str) -> str | None:
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((text.partition("=")[2] for text in variables if text.startswith(f"{name}=")), None)


def as_version(box: Box, version: str) -> None:
    """The box's vLLM becomes this release."""
    root = box.folder / "environment"
    (root / "lib" / "python3.11" / "site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (root / "bin" / "python").chmod(0o755)
    shutil.copy(box.folder / "vllm", root / "bin" / "vllm")
    box.file.write_text(box.file.read_text().replace("vllm: ./vllm", f"vllm: {root}"))


@pytest.mark.parametrize(
    ("version", "visible"), [(None, "GPU-bbbb-0"), ("0.24.0", "GPU-bbbb-0"), ("0.23.1", "1")]
)
def test_an_engine_gets_the_gpu_that_counts_within_the_visible_ones(
    box: Box, version: str | None, visible: str
) -> None:
    """GPU 0 is taken: counted without CUDA_VISIBLE_DEVICES nothing would start."""
    box.configure(top="gpu: 0")
    if version:
        as_version(box, version)
    box.nvml.set(gpus=GPUS, procs=[StubProcess(1, 99 * GIB)])
    assert box.call("check").returncode == 75
    checked = box.call("check", CUDA_VISIBLE_DEVICES="1")
    assert checked.returncode == 0
    assert "gpu 0   NVIDIA Second (1 in nvidia-smi)    100.0 GiB total, 100.0 free" in checked.stdout
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in checked.stderr
    box.vllm.set_faults(context_bytes=GIB // 2)
    daemon = box.start(CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    daemon.until_ready()
    assert variable(daemon.leader("generation"), "CUDA_VISIBLE_DEVICES") == visible
    assert variable(daemon.leader("generation"), "CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    [device] = daemon.status().devices
    assert (device.label, device.name) == ("gpu 0", "NVIDIA Second")
    assert device.used_bytes is not None
    assert device.used_bytes > 90 * GIB
    assert device.others == ()
    assert daemon.stop() == 0


def test_engines_on_two_slices_have_each_its_own_memory(box: Box) -> None:
    box.configure()
    text = box.file.read_text()
    for engine, slice_ in (("embedder", "MIG-2222"), ("writer", "MIG-1111-0")):
        text = text.replace(f"./models/{engine}\n", f"./models/{engine}\n    gpu: {slice_}\n")
    box.file.write_text(text)
    box.nvml.set(gpus=GPUS, slices=SLICES, procs=[StubProcess(7, GIB, gpu=1, slice=0)])
    checked = box.call("check")
    assert checked.returncode == 0
    assert "gpu 1:2  NVIDIA Second MIG 2g.20gb    20.0 GiB total, 20.0 free" in checked.stdout
    assert "gpu 1:0  NVIDIA Second MIG 3g.40gb    40.0 GiB total, 40.0 free" in checked.stdout
    planned = json.loads(box.call("plan", "--no-hub", "--json").stdout)
    assert [(d["label"], d["total_bytes"]) for d in planned["devices"]] == [
        ("gpu 1:2", 20 * GIB),
        ("gpu 1:0", 40 * GIB),
    ]
    box.vllm.set_faults(context_bytes=GIB // 2)
    daemon = box.start()
    daemon.until_ready()
    assert variable(daemon.leader("embedding"), "CUDA_VISIBLE_DEVICES") == "MIG-2222-0"
    assert variable(daemon.leader("generation"), "CUDA_VISIBLE_DEVICES") == "MIG-1111-0"
    small, large = daemon.status().devices
    assert (small.label, small.total_bytes) == ("gpu 1:2", 20 * GIB)
    assert [other.pid for other in large.others] == [7]
    assert small.others == ()
    used = {engine.name: engine.used_bytes or 0 for engine in daemon.status().engines}
    assert 6 * GIB <= used["embedding"] < 8 * GIB
    assert 24 * GIB <= used["generation"] < 26 * GIB
    metrics = daemon.ask("GET", "/metrics").text
    assert f'memoria_device_memory_bytes{{device="gpu 1:0"}} {40 * GIB}' in metrics
    assert daemon.stop() == 0


def test_a_gpu_of_several_slices_is_refused_with_them(box: Box) -> None:
    box.configure(top="gpu: 1")
    box.nvml.set(gpus=GPUS, slices=SLICES)
    done = box.call("check")
    assert done.returncode == 69
    assert "error: GPU 1 is in MIG mode, with 2 slices\n" in done.stderr
    assert "  gpu 1:2  NVIDIA Second MIG 2g.20gb  MIG-2222-0\n" in done.stderr


def test_a_vllm_that_knows_indexes_only_is_refused_on_a_slice(box: Box) -> None:
    box.configure(top="gpu: MIG-1111-0")
    as_version(box, "0.23.1")
    box.nvml.set(gpus=GPUS, slices=SLICES)
    done = box.call("check")
    assert done.returncode == 69
    assert "error: vLLM 0.23.1 cannot run on gpu 1:0, a MIG slice\n" in done.stderr
