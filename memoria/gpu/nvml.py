"""GPUs through NVML: the only file that imports nvidia-ml-py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml

from memoria.errors import NoGpuError, Problem, UnavailableError
from memoria.gpu.device import Device, DeviceProcess
from memoria.gpu.host import describe, host_memory
from memoria.text import aligned

logger = logging.getLogger(__name__)

nvml: Any = pynvml  # it has no types

NO_GPU_HINT = "run on the CPU with `device: cpu`, or try `memoria demo`, which needs no GPU"
LOST_HINT = "look for `Xid` in `journalctl -k`; the GPU needs a reset, or the machine a reboot"
MISMATCH_HINT = "the driver was updated while it was loaded: reboot the machine"
PERMISSION_HINT = "let this user open /dev/nvidiactl and /dev/nvidia*; in a systemd unit see DeviceAllow="

HINTS = {
    nvml.NVML_ERROR_GPU_IS_LOST: LOST_HINT,
    nvml.NVML_ERROR_RESET_REQUIRED: LOST_HINT,
    nvml.NVML_ERROR_UNKNOWN: LOST_HINT,
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: MISMATCH_HINT,
    nvml.NVML_ERROR_NO_PERMISSION: PERMISSION_HINT,
}

# Errors of calls that an older driver, or a GPU in MIG mode, may not support; a snapshot does without them.
UNSUPPORTED = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)


# Of one memory for GPU and host: an engine that takes the last of it stops the machine.
HOST_RESERVE_BYTES = 2 * 2**30


class NvmlReader:
    """Reads GPUs. The first call initialises NVML, `close` shuts it down.

    Indexes are NVML's (PCI bus order), and CUDA's own may differ: give engines the UUID. Thread-safe; every
    call can block for as long as the driver does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._initialised = False

    def count(self) -> int:
        with self._session("count the GPUs"):
            return int(nvml.nvmlDeviceGetCount())

    def driver(self) -> str:
        with self._session("read the driver's version"):
            return str(nvml.nvmlSystemGetDriverVersion())

    def snapshot(self, which: int | str) -> Device:
        with self._session(f"read GPU {which}"):
            index, handle = _by_index(which) if isinstance(which, int) else _by_uuid(which)
            total, used, free, reserved = _memory(handle)
            return Device(
                index=index,
                uuid=str(nvml.nvmlDeviceGetUUID(handle)),
                name=str(nvml.nvmlDeviceGetName(handle)),
                total_bytes=total,
                used_bytes=used,
                free_bytes=free,
                reserved_bytes=reserved,
                processes=_processes(handle),
            )

    def close(self) -> None:
        with self._lock:
            if self._initialised:
                self._initialised = False
                try:
                    nvml.nvmlShutdown()
                except nvml.NVMLError as error:
                    logger.debug("NVML did not shut down cleanly: %s", error)

    @contextmanager
    def _session(self, purpose: str) -> Iterator[None]:
        try:
            with self._lock:
                if not self._initialised:
                    nvml.nvmlInit()
                    self._initialised = True
            yield
        except nvml.NVMLError as error:
            raise _unavailable(error, purpose) from error


def _unavailable(error: Any, purpose: str) -> UnavailableError:
    code: int = error.value
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return NoGpuError("no NVIDIA driver: libnvidia-ml.so.1 is not there", hint=NO_GPU_HINT)
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return NoGpuError("the NVIDIA driver is not loaded", hint=NO_GPU_HINT)
    what = f"NVML could not {purpose}: {error}"
    return UnavailableError(what, hint=HINTS.get(code, "see what `nvidia-smi` says"))


def _by_index(index: int) -> tuple[int, Any]:
    if not 0 <= index < nvml.nvmlDeviceGetCount():
        raise _no_such_gpu(f"there is no GPU {index}")
    return index, nvml.nvmlDeviceGetHandleByIndex(index)


def _by_uuid(uuid: str) -> tuple[int, Any]:
    gpus = [(index, handle, found) for index, handle, found, _ in _gpus()]
    matches = [(index, handle) for index, handle, found in gpus if found.startswith(uuid)]
    if len(matches) > 1:
        raise _no_such_gpu(f"`{uuid}` matches several UUIDs")
    if not matches:
        raise _no_such_gpu(f"there is no GPU with UUID `{uuid}`")
    return matches[0]


def _gpus() -> Iterator[tuple[int, Any, str, str]]:
    """Index, handle, UUID and name of every GPU that answers; one that does not must not hide the others."""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            yield index, handle, nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError as error:
            logger.warning("GPU %d does not answer: %s", index, error)


def _no_such_gpu(what: str) -> UnavailableError:
    rows = [(f"gpu {index}", name, uuid) for index, _, uuid, name in _gpus()]
    if not rows:
        return NoGpuError(f"{what}: the driver sees none", hint=NO_GPU_HINT)
    return UnavailableError(Problem(what, aligned(rows), "set `gpu` to one of these indexes or UUIDs"))


def _memory(handle: Any) -> tuple[int, int, int, int]:
    """Total, used, free and reserved bytes. Version 1 of the call counts reserved as used. A GPU that shares
    the host's memory (GB10, Jetson) supports neither: its figures are the host's."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError as error:
        if error.value not in UNSUPPORTED:
            raise
    else:
        return memory.total, memory.used, memory.free, memory.reserved
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        if error.value not in UNSUPPORTED:
            raise
        total, free = host_memory()
        free = max(0, free - HOST_RESERVE_BYTES)
        return total, total - free, free, 0
    return memory.total, memory.used, memory.free, 0


def _processes(handle: Any) -> tuple[DeviceProcess, ...]:
    """Largest first; those without a figure last."""
    used: dict[int, int | None] = {}
    for processes_of in (
        nvml.nvmlDeviceGetComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
    ):
        for process in _running(processes_of, handle):
            # A process may be in both lists, with the same figure.
            used[process.pid] = process.usedGpuMemory or used.get(process.pid)
    largest_first = sorted(used.items(), key=lambda item: -(item[1] or 0))
    return tuple(DeviceProcess(pid, *describe(pid), size) for pid, size in largest_first)


def _running(processes_of: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
    try:
        return processes_of(handle)
    except nvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return []
        raise
