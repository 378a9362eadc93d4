"""Facts about a device, and the protocol that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that uses device memory. `used_bytes` is None where the driver gives no figure
    (other containers, MIG, WSL)."""

    pid: int
    user: str | None
    command: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """A snapshot of one GPU, or of the host's memory for `device: cpu`. Sizes in bytes.

    `total = used + free + reserved`; `reserved` is the driver's own share (NVML v2 memory info), 0 on a host.

    `index` is what `gpu` says; for a MIG slice named by its UUID, that of its GPU, with the slice's own in
    `slice_index`. `nvml_index` is None for a slice.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserved_bytes: int
    processes: tuple[DeviceProcess, ...]
    is_host: bool = False
    slice_index: int | None = None
    nvml_index: int | None = None

    @property
    def number(self) -> str:
        return str(self.index) if self.slice_index is None else f"{self.index}:{self.slice_index}"

    @property
    def usable_bytes(self) -> int:
        """CUDA's total (`cudaMemGetInfo`), of which vLLM takes its fraction."""
        return self.total_bytes - self.reserved_bytes

    @property
    def label(self) -> str:
        return "host" if self.is_host else f"gpu {self.number}"


class DeviceReader(Protocol):
    """Reads devices. `which` is an index, or the UUID of a GPU or a MIG slice, or a unique prefix of one.

    `snapshot` raises `UnavailableError` without the device or its driver. Calls block (NVML can hang): the
    daemon makes them in a worker thread, with a timeout.
    """

    def snapshot(self, which: int | str) -> Device: ...

    def driver(self) -> str: ...

    def close(self) -> None: ...
