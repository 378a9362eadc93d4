"""`mps: true`: the control daemon's life under memoria's, and the engines' limits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from memoria.text import GIB
from tests.integration.daemon import Box, until
from tests.integration.test_daemon_devices import variable
from tests.stub_mps import StubMps
from tests.stub_nvml import StubGpu, StubSlice


@pytest.fixture
def mps(box: Box) -> StubMps:
    box.configure(top="mps: true")
    text = box.file.read_text()
    text = text.replace("runner: pooling\n", "runner: pooling\n    compute_percent: 40\n")
    box.file.write_text(
        text.replace("model: ./models/writer\n", "model: ./models/writer\n    pinned_memory: budget\n")
    )
    return StubMps(box.folder)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_engines_get_their_limits_and_the_control_daemon_ends_last(box: Box, mps: StubMps) -> None:
    box.vllm.set_faults(context_bytes=GIB // 2)
    daemon = box.start(PATH=mps.path)
    daemon.until_ready()
    pipes = str(box.runtime / "mps")
    leaders = {name: daemon.leader(name) for name in ("embedding", "generation")}
    for pid in leaders.values():
        assert variable(pid, "CUDA_MPS_PIPE_DIRECTORY") == pipes
    assert variable(leaders["embedding"], "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE") == "40"
    assert variable(leaders["embedding"], "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT") is None
    assert variable(leaders["generation"], "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE") is None
    # 60 GiB, a context and its margin
    assert variable(leaders["generation"], "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT") == f"0={60 * 1024 + 768}M"
    [control], [server] = mps.pids("control up"), mps.pids("server up")
    assert variable(control, "CUDA_VISIBLE_DEVICES") is None
    used = {engine.name: engine.used_bytes for engine in daemon.status().engines}
    assert used == {"embedding": 30 * GIB + GIB // 2, "generation": 60 * GIB + GIB // 2}
    [device] = daemon.status().devices
    assert device.others == ()
    assert daemon.stop() == 0
    assert mps.events()[-1] == ("quit", control)
    assert daemon.story("stopped", "mps_started")[0] == ("memoria", "mps_started")
    assert not any(map(is_alive, (control, server, *leaders.values())))
    assert not Path(pipes).exists()
    assert box.survivors() == []


def test_a_dead_server_is_reported_and_the_engines_restart_in_order(box: Box, mps: StubMps) -> None:
    daemon = box.start(PATH=mps.path)
    daemon.until_ready()
    before = [daemon.leader(name) for name in ("embedding", "generation")]
    daemon.forget()
    os.kill(mps.pids("server up")[0], signal.SIGKILL)
    daemon.told("memoria", "mps_server_ended")
    for name in ("embedding", "generation"):
        daemon.told(name, "ready")
    assert daemon.story("gate_passed")[-2:] == [("embedding", "gate_passed"), ("generation", "gate_passed")]
    assert len(mps.pids("server up")) == 2
    assert len(mps.pids("control up")) == 1
    assert not set(before) & {daemon.leader(name) for name in ("embedding", "generation")}
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_a_dead_control_daemon_is_started_again_before_the_engines(box: Box, mps: StubMps) -> None:
    daemon = box.start(PATH=mps.path)
    daemon.until_ready()
    daemon.forget()
    os.kill(mps.pids("control up")[0], signal.SIGKILL)
    daemon.told("memoria", "mps_ended")
    for name in ("embedding", "generation"):
        daemon.told(name, "ready")
    story = daemon.story("mps_ended", "mps_started", "gate_passed")
    assert story[-4:] == [
        ("memoria", "mps_ended"),
        ("memoria", "mps_started"),
        ("embedding", "gate_passed"),
        ("generation", "gate_passed"),
    ]
    assert len(mps.pids("control up")) == len(mps.pids("server up")) == 2
    assert not is_alive(mps.pids("server up")[0])
    assert daemon.stop() == 0


def test_a_killed_daemon_leaves_no_mps_behind(box: Box, mps: StubMps) -> None:
    daemon = box.start(PATH=mps.path)
    daemon.until_ready()
    [control], [server] = mps.pids("control up"), mps.pids("server up")
    daemon.kill()
    until(lambda: not is_alive(control))  # it dies with its parent; its server is a leftover
    again = box.start(PATH=mps.path)
    again.until_ready()
    assert not is_alive(server)
    assert again.stop() == 0


def test_a_control_daemon_that_does_not_come_up_ends_the_start(box: Box, mps: StubMps) -> None:
    (box.folder / "mps-bin" / "nvidia-cuda-mps-control").write_text(
        "#!/bin/sh\necho no GPU for MPS >&2; exit 1\n"
    )
    done = box.call("run", PATH=mps.path)
    assert done.returncode == 69
    assert "the MPS control daemon did not come up" in done.stderr
    assert "no GPU for MPS" in done.stderr
    assert box.vllm.events("core spawned") == []
    assert box.survivors() == []


def test_check_says_what_is_missing(box: Box, mps: StubMps) -> None:
    checked = box.call("check", PATH=mps.path)
    assert checked.returncode == 0
    assert "mps     driver 580.00.stub    enforces `compute_percent` and `pinned_memory`\n" in checked.stdout
    done = box.call("check")
    assert done.returncode == 69
    assert "needs `nvidia-cuda-mps-control`, which is not on PATH" in done.stderr
    box.nvml.set(gpus=[StubGpu(100 * GIB)], slices=[StubSlice(100 * GIB, "MIG-1")])
    done = box.call("check", PATH=mps.path)
    assert done.returncode == 69
    assert "gpu 0, a MIG slice: each slice needs a control daemon of its own" in done.stderr
