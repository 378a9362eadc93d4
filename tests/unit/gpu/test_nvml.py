"""The real pynvml over a stub driver, in processes of their own (see tests/stub_nvml)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memoria.gpu.host import host_memory
from memoria.gpu.nvml import HOST_RESERVE_BYTES, visible_devices
from memoria.text import GIB
from tests.stub_nvml import NvmlStub, StubError, StubGpu, StubProcess, StubSlice

FIRST = StubGpu(80 * GIB, used=10 * GIB, reserved=GIB, uuid="GPU-aaaa1111-0", name="NVIDIA First GPU")
SECOND = StubGpu(40 * GIB, uuid="GPU-aaaa2222-0", name="NVIDIA Second GPU")

SLICES = [
    StubSlice(10 * GIB, "MIG-bbbb1111-0", number=0, used=GIB),
    StubSlice(20 * GIB, "MIG-bbbb2222-0", number=3, name="NVIDIA First GPU MIG 2g.20gb"),
]

READ = """
import dataclasses, json, sys
from memoria.errors import UnavailableError
from memoria.gpu import open_reader

reader = open_reader("cuda")
for which in json.load(sys.stdin):
    try:
        print(json.dumps(dataclasses.asdict(reader.snapshot(which))))
    except UnavailableError as error:
        print(json.dumps([dataclasses.asdict(problem) for problem in error.problems]))
reader.close()
"""


def in_python(code: str, env: dict[str, str], stdin: str = "") -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, input=stdin, text=True, check=True, stdout=-1
    ).stdout


def snapshots(env: dict[str, str], *which: int | str) -> list[Any]:
    return [json.loads(line) for line in in_python(READ, env, json.dumps(which)).splitlines()]


def test_a_gpu_that_shares_the_hosts_memory_has_the_hosts_figures(nvml_stub: NvmlStub) -> None:
    """NVML of a GB10: NOT_SUPPORTED."""
    refused = [StubError(f"nvmlDeviceGetMemoryInfo{version}", 3) for version in ("_v2", "")]
    nvml_stub.set(gpus=[StubGpu(0, name="NVIDIA GB10")], errors=refused)
    [device] = snapshots(nvml_stub.env(), 0)
    total, free = host_memory()
    assert device["name"] == "NVIDIA GB10"
    assert device["total_bytes"] == total
    assert device["free_bytes"] == pytest.approx(free - HOST_RESERVE_BYTES, abs=GIB)
    assert device["used_bytes"] + device["free_bytes"] == total


def test_a_snapshot_has_the_drivers_figures(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    [device] = snapshots(nvml_stub.env(), 0)
    assert device == {
        "index": 0,
        "uuid": "GPU-aaaa1111-0",
        "name": "NVIDIA First GPU",
        "total_bytes": 80 * GIB,
        "used_bytes": 10 * GIB,
        "free_bytes": 69 * GIB,
        "reserved_bytes": GIB,
        "processes": [],
        "is_host": False,
        "slice_index": None,
        "nvml_index": 0,
    }


def test_a_gpu_is_found_by_its_uuid_and_by_a_unique_beginning_of_it(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    found = snapshots(nvml_stub.env(), "GPU-aaaa2222-0", "GPU-aaaa1")
    assert [device["index"] for device in found] == [1, 0]


def test_a_beginning_of_two_uuids_is_refused(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    [[problem]] = snapshots(nvml_stub.env(), "GPU-aaaa")
    assert problem["what"] == "`GPU-aaaa` matches several UUIDs"


@pytest.mark.parametrize("which", [2, -1, "GPU-bbbb"])
def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(
    nvml_stub: NvmlStub, which: int | str
) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    [[problem]] = snapshots(nvml_stub.env(), which)
    assert str(which) in problem["what"]
    assert problem["where"] == [
        "gpu 0  NVIDIA First GPU   GPU-aaaa1111-0",
        "gpu 1  NVIDIA Second GPU  GPU-aaaa2222-0",
    ]
    assert problem["hint"] == "set `gpu` to one of these indexes or UUIDs"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (None, None),
        ("", ()),
        ("-1", ()),
        ("0", (0,)),
        ("3,1", (3, 1)),
        (" 3 , 1 ", (3, 1)),
        ("1,-1,0", (1,)),
        ("1,,0", (1,)),
        ("1gpu,2", (1, 2)),
        ("none", ()),
        ("0,GPU-a", (0,)),
        ("GPU-a,0", ("GPU-a",)),
        ("GPU-a,GPU-b", ("GPU-a", "GPU-b")),
        ("MIG-a,GPU-b", ("MIG-a",)),
        ("0,1,0", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(text: str | None, entries: object) -> None:
    assert visible_devices(text) == entries


@pytest.mark.parametrize(
    ("visible", "which", "uuid"),
    [
        ("1", 0, "GPU-aaaa2222-0"),
        ("1,0", 1, "GPU-aaaa1111-0"),
        ("GPU-aaaa2", 0, "GPU-aaaa2222-0"),
        ("1", "GPU-aaaa2222-0", "GPU-aaaa2222-0"),
        ("1,7,0", 0, "GPU-aaaa2222-0"),
    ],
)
def test_a_gpu_counts_within_the_visible_ones(
    nvml_stub: NvmlStub, visible: str, which: int | str, uuid: str
) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    [device] = snapshots({**nvml_stub.env(), "CUDA_VISIBLE_DEVICES": visible}, which)
    assert device["uuid"] == uuid
    assert device["index"] == (which if isinstance(which, int) else 0)
    assert device["nvml_index"] == [FIRST.uuid, SECOND.uuid].index(uuid)


@pytest.mark.parametrize(
    ("visible", "which"), [("1", 1), ("1", "GPU-aaaa1111-0"), ("1,7,0", 2), ("1,-1,0", 1), ("1,GPU-x", 1)]
)
def test_a_gpu_that_is_not_visible_is_refused_with_those_that_are(
    nvml_stub: NvmlStub, visible: str, which: int | str
) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND])
    [[problem]] = snapshots({**nvml_stub.env(), "CUDA_VISIBLE_DEVICES": visible}, which)
    assert problem["what"] == f"there is no GPU {which} within CUDA_VISIBLE_DEVICES={visible}"
    assert problem["where"] == ["gpu 0  NVIDIA Second GPU  GPU-aaaa2222-0"]


@pytest.mark.parametrize("visible", ["", "-1", "0,0", "9"])
def test_a_setting_that_leaves_no_gpu_is_named(nvml_stub: NvmlStub, visible: str) -> None:
    nvml_stub.set(gpus=[FIRST])
    [[problem]] = snapshots({**nvml_stub.env(), "CUDA_VISIBLE_DEVICES": visible}, 0)
    assert problem["what"] == f"CUDA_VISIBLE_DEVICES={visible} leaves no GPU"


@pytest.mark.parametrize(
    ("visible", "order", "second", "warned"),
    [
        ("0", None, SECOND, True),
        ("0", "FASTEST_FIRST", SECOND, True),
        ("0", "PCI_BUS_ID", SECOND, False),
        ("GPU-aaaa1", None, SECOND, False),
        ("0", None, replace(SECOND, name=FIRST.name), False),
    ],
)
def test_an_order_that_may_not_be_cudas_is_warned_of(
    nvml_stub: NvmlStub, visible: str, order: str | None, second: StubGpu, warned: bool
) -> None:
    nvml_stub.set(gpus=[FIRST, second])
    env = {**os.environ, **nvml_stub.env(), "CUDA_VISIBLE_DEVICES": visible}
    if order is not None:
        env["CUDA_DEVICE_ORDER"] = order
    done = subprocess.run(
        [sys.executable, "-c", READ], env=env, input="[0]", text=True, capture_output=True, check=False
    )
    assert ("CUDA_DEVICE_ORDER=PCI_BUS_ID" in done.stderr) is warned


def test_a_slice_has_its_own_memory_and_processes(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(
        gpus=[FIRST, SECOND],
        slices=SLICES,
        procs=[StubProcess(os.getpid(), GIB, slice=0), StubProcess(7, GIB, slice=3)],
    )
    first, second = snapshots(nvml_stub.env(), "MIG-bbbb1111-0", "MIG-bbbb2")
    assert (first["total_bytes"], first["free_bytes"]) == (10 * GIB, 9 * GIB)
    assert [process["pid"] for process in first["processes"]] == [os.getpid()]
    assert (first["index"], first["slice_index"], first["nvml_index"]) == (0, 0, None)
    assert (second["index"], second["slice_index"], second["total_bytes"]) == (0, 3, 20 * GIB)


def test_slices_count_within_the_visible_ones(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND], slices=SLICES)
    visible = {**nvml_stub.env(), "CUDA_VISIBLE_DEVICES": "MIG-bbbb2222-0,MIG-bbbb1111-0"}
    first, second, [refused] = snapshots(visible, 0, 1, "GPU-aaaa2222-0")
    assert (first["uuid"], first["index"], first["slice_index"]) == ("MIG-bbbb2222-0", 0, None)
    assert (second["uuid"], second["index"]) == ("MIG-bbbb1111-0", 1)
    assert "there is no GPU GPU-aaaa2222-0 within CUDA_VISIBLE_DEVICES=MIG-" in refused["what"]


@pytest.mark.parametrize("which", [0, "GPU-aaaa1111-0"])
def test_a_gpu_of_one_slice_is_that_slice(nvml_stub: NvmlStub, which: int | str) -> None:
    """As a container of Kubernetes sees it; CUDA takes the slice, too."""
    nvml_stub.set(gpus=[FIRST, SECOND], slices=SLICES[1:])
    [device] = snapshots(nvml_stub.env(), which)
    assert (device["uuid"], device["slice_index"], device["nvml_index"]) == ("MIG-bbbb2222-0", None, None)


def test_a_gpu_of_several_slices_is_refused_with_their_uuids(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND], slices=SLICES)
    [problem], [missing], whole = snapshots(nvml_stub.env(), 0, "MIG-cccc", 1)
    assert problem["what"] == "GPU 0 is in MIG mode, with 2 slices"
    assert (
        problem["where"]
        == missing["where"]
        == [
            "gpu 0:0  NVIDIA Stub MIG 1g.10gb       MIG-bbbb1111-0",
            "gpu 0:3  NVIDIA First GPU MIG 2g.20gb  MIG-bbbb2222-0",
        ]
    )
    assert missing["what"] == "there is no MIG slice with UUID `MIG-cccc`"
    assert whole["uuid"] == "GPU-aaaa2222-0"


def test_a_gpu_in_mig_mode_without_slices_comes_with_the_command_that_makes_them(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[replace(FIRST, in_mig_mode=True)])
    [[problem]] = snapshots(nvml_stub.env(), 0)
    assert problem["what"] == "GPU 0 is in MIG mode, with no slices"
    assert "nvidia-smi mig -i 0 -cgi PROFILE -C" in problem["hint"]


def test_a_driver_without_gpus_points_to_the_cpu(nvml_stub: NvmlStub) -> None:
    [[problem]] = snapshots(nvml_stub.env(), 0)
    assert problem["what"] == "there is no GPU 0: the driver sees none"
    assert "`device: cpu`" in problem["hint"]


def test_a_lost_gpu_does_not_hide_another(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND], errors=[StubError("nvmlDeviceGetHandleByIndex_v2", 15, gpu=0)])
    [problem], second = snapshots(nvml_stub.env(), 0, "GPU-aaaa2222-0")
    assert "GPU is lost" in problem["what"]
    assert "Xid" in problem["hint"]
    assert second["index"] == 1


def test_processes_come_with_user_and_command_largest_first(nvml_stub: NvmlStub) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as small:
        nvml_stub.set(
            gpus=[FIRST],
            procs=[
                StubProcess(small.pid, 1 * GIB),
                StubProcess(os.getpid(), 5 * GIB),
                StubProcess(7, None, gpu=1),
            ],
        )
        [device] = snapshots(nvml_stub.env(), 0)
        assert small.stdin
        small.stdin.close()
    large, little = device["processes"]
    assert (large["pid"], large["used_bytes"]) == (os.getpid(), 5 * GIB)
    assert (little["pid"], little["used_bytes"]) == (small.pid, 1 * GIB)
    assert little["command"] == Path(sys.executable).name
    assert little["user"]


def test_clients_of_mps_are_processes_too(nvml_stub: NvmlStub) -> None:
    """The driver lists them apart; without its list (older drivers) the others are still there."""
    procs = [StubProcess(os.getpid(), 5 * GIB, is_mps_client=True), StubProcess(os.getppid(), GIB)]
    nvml_stub.set(gpus=[FIRST], procs=procs)
    [device] = snapshots(nvml_stub.env(), 0)
    assert [one["pid"] for one in device["processes"]] == [os.getpid(), os.getppid()]
    refused = StubError("nvmlDeviceGetMPSComputeRunningProcesses_v3", 13)
    nvml_stub.set(gpus=[FIRST], procs=procs, errors=[refused])
    [device] = snapshots(nvml_stub.env(), 0)
    assert [one["pid"] for one in device["processes"]] == [os.getppid()]


def test_a_vanished_process_and_a_missing_size_are_unknown_not_zero(nvml_stub: NvmlStub) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    nvml_stub.set(gpus=[FIRST], procs=[StubProcess(gone.pid, None)])
    [device] = snapshots(nvml_stub.env(), 0)
    assert device["processes"] == [{"pid": gone.pid, "user": None, "command": None, "used_bytes": None}]


@pytest.mark.parametrize("code", [3, 13, 25])
def test_an_older_driver_counts_reserved_memory_as_used(nvml_stub: NvmlStub, code: int) -> None:
    nvml_stub.set(gpus=[FIRST], errors=[StubError("nvmlDeviceGetMemoryInfo_v2", code)])
    [device] = snapshots(nvml_stub.env(), 0)
    assert (device["used_bytes"], device["free_bytes"], device["reserved_bytes"]) == (11 * GIB, 69 * GIB, 0)


def test_a_driver_that_lists_no_processes_still_gives_a_snapshot(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(
        gpus=[FIRST],
        procs=[StubProcess(1, GIB)],
        errors=[StubError("nvmlDeviceGetComputeRunningProcesses_v3", 3)],
    )
    [device] = snapshots(nvml_stub.env(), 0)
    assert device["processes"] == []


@pytest.mark.parametrize(
    ("function", "code", "what", "hint"),
    [
        ("nvmlInitWithFlags", 9, "the NVIDIA driver is not loaded", "`device: cpu`"),
        ("nvmlInitWithFlags", 18, "version mismatch", "reboot"),
        ("nvmlInitWithFlags", 4, "Insufficient Permissions", "DeviceAllow="),
        ("nvmlDeviceGetMemoryInfo_v2", 15, "NVML could not read GPU 0: GPU is lost", "Xid"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", 999, "Unknown Error", "Xid"),
        ("nvmlDeviceGetName", 17, "blocked the request", "nvidia-smi"),
    ],
)
def test_every_error_of_the_driver_comes_with_a_next_step(
    nvml_stub: NvmlStub, function: str, code: int, what: str, hint: str
) -> None:
    nvml_stub.set(gpus=[FIRST], errors=[StubError(function, code)])
    [[problem]] = snapshots(nvml_stub.env(), 0)
    assert what in problem["what"]
    assert hint in problem["hint"]


def test_without_a_driver_library_the_way_to_the_cpu_is_shown() -> None:
    # ctypes asks the linker for the library by this name; a machine with a driver must not answer.
    no_library = "import ctypes\ndef gone(name): raise OSError(name)\nctypes.CDLL = gone\n"
    output = in_python(no_library + READ, {}, "[0]")
    assert json.loads(output) == [
        {
            "what": "no NVIDIA driver: libnvidia-ml.so.1 is not there",
            "where": [],
            "hint": "run on the CPU with `device: cpu`, or try `memoria demo`, which needs no GPU",
        }
    ]


def test_a_later_snapshot_sees_what_changed(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST])
    code = """
from memoria.gpu import open_reader
reader = open_reader("cuda")
print(reader.count(), reader.driver(), flush=True)
while input():
    print(reader.snapshot(0).used_bytes, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **nvml_stub.env()}, stdin=-1, stdout=-1, text=True
    ) as reader:
        assert reader.stdin
        assert reader.stdout
        assert reader.stdout.readline() == "1 580.00.stub\n"
        for used in (10 * GIB, 0, 3 * GIB):
            nvml_stub.set(gpus=[StubGpu(80 * GIB, used=used)])
            print("again", file=reader.stdin, flush=True)
            assert int(reader.stdout.readline()) == used
        print(file=reader.stdin, flush=True)
    assert reader.returncode == 0


def test_a_reader_initialises_again_after_close(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST, SECOND], errors=[StubError("nvmlShutdown", 999)])
    code = """
from memoria.gpu import open_reader
reader = open_reader("cuda")
reader.close()
print(reader.count())
reader.close()
print(reader.count())
"""
    assert in_python(code, nvml_stub.env()).split() == ["2", "2"]


def test_a_slow_driver_is_slow_not_wrong(nvml_stub: NvmlStub) -> None:
    nvml_stub.set(gpus=[FIRST], delays_ms={"nvmlDeviceGetMemoryInfo_v2": 50})
    [device] = snapshots(nvml_stub.env(), 0)
    assert device["free_bytes"] == 69 * GIB


def test_opening_a_reader_for_a_gpu_touches_no_driver() -> None:
    in_python('from memoria.gpu import open_reader; open_reader("cuda")', {})


def test_the_door_to_device_facts_is_light() -> None:
    code = "import sys, memoria.gpu; print('pynvml' in sys.modules, 'psutil' in sys.modules)"
    assert in_python(code, {}).split() == ["False", "False"]
