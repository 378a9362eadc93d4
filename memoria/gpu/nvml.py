"""GPUs through NVML: the only file that imports nvidia-ml-py."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from memoria.errors import NoGpuError, Problem, SlicedGpuError, UnavailableError
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


VISIBLE = "CUDA_VISIBLE_DEVICES"
_LEADING_NUMBER = re.compile(r"\s*\+?(\d+)")
_UUID_KINDS = ("GPU-", "MIG-")


def visible_devices(text: str | None) -> tuple[int | str, ...] | None:
    """The entries of CUDA_VISIBLE_DEVICES, indexes or UUIDs; None where it is not set. As CUDA reads it: the
    first entry decides which of them, the first of another kind ends the list (an empty one, `-1`), `1x` is
    1, and with an entry twice there are none."""
    if text is None:
        return None
    kind = text.lstrip()[:4]
    found: list[int | str] = []
    for part in text.split(","):
        entry: int | str
        if kind in _UUID_KINDS:
            if not (entry := part.strip()).startswith(kind):
                break
        elif number := _LEADING_NUMBER.match(part):
            entry = int(number[1])
        else:
            break
        if entry in found:
            return ()
        found.append(entry)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU or a MIG slice; the indexes are those of `Device`."""

    handle: Any
    index: int
    nvml_index: int | None
    slice_index: int | None = None

    @property
    def uuid(self) -> str:
        return str(nvml.nvmlDeviceGetUUID(self.handle))

    @property
    def row(self) -> tuple[str, str, str]:
        number = self.index if self.slice_index is None else f"{self.index}:{self.slice_index}"
        return f"gpu {number}", str(nvml.nvmlDeviceGetName(self.handle)), self.uuid


class NvmlReader:
    """Reads the GPUs that CUDA_VISIBLE_DEVICES in `environ` leaves, which NVML does not look at. The first
    call initialises NVML, `close` shuts it down.

    Indexes are NVML's (PCI bus order), counted within CUDA_VISIBLE_DEVICES; CUDA's own may differ: give
    engines the UUID. Thread-safe; every call can block for as long as the driver does.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._initialised = False
        self._visible_text = environ.get(VISIBLE)
        self._visible = visible_devices(self._visible_text)
        self._in_bus_order = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"

    def count(self) -> int:
        with self._session("count the GPUs"):
            return int(nvml.nvmlDeviceGetCount())

    def driver(self) -> str:
        with self._session("read the driver's version"):
            return str(nvml.nvmlSystemGetDriverVersion())

    def snapshot(self, which: int | str) -> Device:
        with self._session(f"read GPU {which}"):
            gpu = self._find(which)
            total, used, free, reserved = _memory(gpu.handle)
            return Device(
                index=gpu.index,
                uuid=gpu.uuid,
                name=str(nvml.nvmlDeviceGetName(gpu.handle)),
                total_bytes=total,
                used_bytes=used,
                free_bytes=free,
                reserved_bytes=reserved,
                processes=_processes(gpu.handle),
                slice_index=gpu.slice_index,
                nvml_index=gpu.nvml_index,
            )

    def close(self) -> None:
        with self._lock:
            if self._initialised:
                self._initialised = False
                try:
                    nvml.nvmlShutdown()
                except nvml.NVMLError as error:
                    logger.debug("NVML did not shut down cleanly: %s", error)

    def _find(self, which: int | str) -> _Gpu:
        if self._visible is not None:
            return self._find_visible(self._visible, which)
        if isinstance(which, str):
            return _by_uuid(which)
        if not 0 <= which < nvml.nvmlDeviceGetCount():
            raise _no_such_gpu(f"there is no GPU {which}", list(_gpus()))
        return _whole(which)

    def _find_visible(self, entries: Sequence[int | str], which: int | str) -> _Gpu:
        self._check_order(entries)
        setting = f"{VISIBLE}={self._visible_text}"
        found: list[_Gpu] = []
        for index, entry in enumerate(entries):
            try:
                if isinstance(entry, int) and entry >= nvml.nvmlDeviceGetCount():
                    break
                gpu = _whole(entry) if isinstance(entry, int) else _by_uuid(entry)
            except UnavailableError:
                if index == which:
                    raise
                break
            except nvml.NVMLError:
                if index == which:
                    raise
                continue
            found.append(_Gpu(gpu.handle, index, gpu.nvml_index))
            if index == which:
                return found[-1]
        if isinstance(which, str):
            matches = [gpu for gpu in found if gpu.uuid.startswith(which)]
            if len(matches) == 1:
                return matches[0]
        if not found:
            raise NoGpuError(f"{setting} leaves no GPU", hint=f"unset {VISIBLE}, or list GPUs in it")
        raise _no_such_gpu(f"there is no GPU {which} within {setting}", found)

    def _check_order(self, entries: Sequence[int | str]) -> None:
        """CUDA's default order is its own, fastest first: NVML can tell only that it may differ."""
        if self._in_bus_order or not entries or isinstance(entries[0], str):
            return
        self._in_bus_order = True  # one warning
        if len({gpu.row[1] for gpu in _gpus()}) > 1:
            logger.warning(
                "%s counts GPUs as `nvidia-smi` does here; other programs may count them otherwise: "
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or list UUIDs",
                f"{VISIBLE}={self._visible_text}",
            )

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


def _whole(index: int) -> _Gpu:
    """A GPU, or its slice where MIG leaves just one, as CUDA does."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    slices = _slices(index, handle)
    if slices is None:
        return _Gpu(handle, index, index)
    if len(slices) == 1:
        return _Gpu(slices[0].handle, index, None)
    hint = "set `gpu` to the UUID of a slice"
    if not slices:
        hint = f"make slices with `nvidia-smi mig -i {index} -cgi PROFILE -C`, or end MIG mode"
    what = f"GPU {index} is in MIG mode, with {len(slices) or 'no'} slices"
    raise SlicedGpuError(Problem(what, aligned([gpu.row for gpu in slices]) if slices else (), hint))


def _slices(index: int, handle: Any) -> list[_Gpu] | None:
    """The slices of a GPU; None where it is not in MIG mode."""
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError as error:
        if error.value in UNSUPPORTED:
            return None
        raise
    found: list[_Gpu] = []
    for number in range(count):
        try:
            slice_ = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_FOUND:  # not every number is taken
                raise
        else:
            found.append(_Gpu(slice_, index, None, number))
    return found


def _by_uuid(uuid: str) -> _Gpu:
    """A GPU or a slice by its UUID, or by a beginning of it that no other has."""
    gpus = list(_gpus())
    if uuid.startswith("MIG-"):
        gpus = [slice_ for gpu in gpus for slice_ in _slices(gpu.index, gpu.handle) or ()]
    matches = [gpu for gpu in gpus if gpu.uuid.startswith(uuid)]
    if len(matches) > 1:
        raise _no_such_gpu(f"`{uuid}` matches several UUIDs", gpus)
    if not matches:
        kind = "MIG slice" if uuid.startswith("MIG-") else "GPU"
        raise _no_such_gpu(f"there is no {kind} with UUID `{uuid}`", gpus or list(_gpus()))
    return matches[0] if matches[0].nvml_index is None else _whole(matches[0].index)


def _gpus() -> Iterator[_Gpu]:
    """Every GPU that answers; one that does not must not hide the others."""
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu = _Gpu(nvml.nvmlDeviceGetHandleByIndex(index), index, index)
            _ = gpu.row
        except nvml.NVMLError as error:
            logger.warning("GPU %d does not answer: %s", index, error)
        else:
            yield gpu


def _no_such_gpu(what: str, there: Sequence[_Gpu]) -> UnavailableError:
    if not there:
        return NoGpuError(f"{what}: the driver sees none", hint=NO_GPU_HINT)
    rows = [gpu.row for gpu in there]
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
        nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
        nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
    ):
        for process in _running(processes_of, handle):
            # A process may be in several lists, with the same figure.
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
