from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from memoria.errors import Problem, UnavailableError
from memoria.gpu import open_reader, read_devices
from memoria.gpu.device import Device
from memoria.gpu.host import CgroupMemory, HostReader, cgroup_memory, describe, short_command

MIB = 2**20


def make_group(group: Path, *, limit: str, current: int, inactive_file: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\n")


def member_of(tmp_path: Path, path: str) -> Path:
    membership = tmp_path / "membership"
    membership.write_text(f"4:memory:/ignored\n0::{path}\n")
    return membership


def test_the_host_is_a_device_with_its_real_memory(tmp_path: Path) -> None:
    device = HostReader(tmp_path, tmp_path / "none").snapshot(0)
    assert device.is_host
    assert device.label == "host"
    assert device.total_bytes == psutil.virtual_memory().total == device.usable_bytes
    assert device.used_bytes + device.free_bytes == device.total_bytes
    assert device.free_bytes > 0


def test_the_host_is_the_same_under_every_name() -> None:
    with_both = read_devices(open_reader("cpu"), [0, "host"])
    assert {device.uuid for device in with_both.values()} == {"host"}


def test_the_hosts_driver_is_its_kernel() -> None:
    assert open_reader("cpu").driver().endswith(os.uname().release)


def test_a_smaller_control_group_is_the_device(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_group(root / "box", limit=str(64 * MIB), current=24 * MIB)
    device = HostReader(root, member_of(tmp_path, "/box")).snapshot(0)
    assert (device.total_bytes, device.free_bytes, device.used_bytes) == (64 * MIB, 40 * MIB, 24 * MIB)


def test_a_control_group_larger_than_the_host_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_group(root / "box", limit=str(2**60), current=0)
    device = HostReader(root, member_of(tmp_path, "/box")).snapshot(0)
    assert device.total_bytes == psutil.virtual_memory().total


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_group(root / "slice", limit=str(100 * MIB), current=90 * MIB)
    make_group(root / "slice" / "box", limit="max", current=10 * MIB)
    assert cgroup_memory(root, member_of(tmp_path, "/slice/box")) == CgroupMemory(100 * MIB, 10 * MIB)


def test_page_cache_that_can_be_given_back_is_free(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_group(root, limit=str(100 * MIB), current=90 * MIB, inactive_file=50 * MIB)
    assert cgroup_memory(root, member_of(tmp_path, "/")) == CgroupMemory(100 * MIB, 60 * MIB)


def test_no_limit_no_v2_group_and_no_proc_are_no_limit(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    make_group(root, limit="max", current=0)
    only_v1 = tmp_path / "only-v1"
    only_v1.write_text("4:memory:/box\n")
    assert cgroup_memory(root, member_of(tmp_path, "/")) is None
    assert cgroup_memory(root, only_v1) is None
    assert cgroup_memory(root, tmp_path / "absent") is None


def test_a_process_is_described_by_program_and_script_only() -> None:
    assert (
        short_command(["/usr/bin/python3", "/srv/jobs/train.py", "--token", "s3cret"]) == "python3 train.py"
    )
    assert short_command(["python", "-m", "vllm.entrypoints.openai.api_server", "--api-key", "k"]) == (
        "python -m vllm.entrypoints.openai.api_server"
    )
    assert short_command(["tool", "--api-key=s3cret", "run"]) == "tool"
    assert short_command([]) == ""


def test_a_process_title_cannot_write_to_the_terminal() -> None:
    assert short_command(["evil\x1b[2J\n", "x\x07"]) == "evil?[2J? x?"


def test_this_process_has_a_user_and_a_command() -> None:
    user, command = describe(os.getpid())
    assert user
    assert command


class TwoGpus:
    """A reader of GPU 0 and 1."""

    def snapshot(self, which: int | str) -> Device:
        if which not in (0, 1):
            raise UnavailableError(Problem(f"there is no GPU {which}"))
        return Device(int(which), f"GPU-{which}", "x", 1, 0, 1, 0, ())

    def driver(self) -> str:
        return "1"

    def close(self) -> None: ...


def test_all_missing_devices_are_reported_at_once() -> None:
    assert list(read_devices(TwoGpus(), [1, 0, 1])) == [1, 0]
    with pytest.raises(UnavailableError) as caught:
        read_devices(TwoGpus(), [0, 5, 6])
    assert [problem.what for problem in caught.value.problems] == ["there is no GPU 5", "there is no GPU 6"]
