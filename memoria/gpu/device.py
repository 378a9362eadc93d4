"""What memoria knows of a device: frozen facts, and the small protocol that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds device memory. `used_bytes` is None where the driver does not tell
    (other containers, MIG, WSL)."""

    pid: int
    user: str | None
    command: str | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the host's memory for `device: cpu`, at one moment. All sizes in bytes.

    `total = used + free + reserved`; `reserved` is the driver's own share (NVML v2 memory info), 0 on a host.
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

    @property
    def usable_bytes(self) -> int:
        """What CUDA calls the total (`cudaMemGetInfo`), and so what vLLM's fraction is a fraction of."""
        return self.total_bytes - self.reserved_bytes

    @property
    def label(self) -> str:
        return "host" if self.is_host else f"gpu {self.index}"


class DeviceReader(Protocol):
    """Reads devices. `which` is an index, a GPU UUID (or a unique prefix of one).

    `snapshot` raises `UnavailableError` when the device or its driver is not there.
    Calls block (NVML can hang): the daemon calls them in a worker thread with a timeout.
    """

    def snapshot(self, which: int | str) -> Device: ...

    def driver(self) -> str: ...

    def close(self) -> None: ...
