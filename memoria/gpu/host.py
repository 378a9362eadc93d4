"""The host: its memory as a device, for `device: cpu`, and the names of its processes."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from memoria.gpu.device import Device, DeviceProcess

# Smaller processes do not keep an engine from starting, and would bury those that do.
WORTH_NAMING_BYTES = 256 * 2**20


_CGROUP_ROOT, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """The tightest limit of a control group and its ancestors, in bytes."""

    limit_bytes: int
    free_bytes: int


class HostReader:
    """Reads the whole machine, or the control group where its limit is smaller; `which` does not matter.
    `free` is what is available without swapping; a process's `used` is its resident set, so shared memory is
    counted in every process.

    vLLM's CPU worker takes its fraction of one NUMA node; on a host with several nodes this reader's total is
    larger, and so is the memory that a fraction stands for (vllm/utils/cpu_resource_utils.py).
    """

    def __init__(self, cgroup_root: Path = _CGROUP_ROOT, membership: Path = _MEMBERSHIP) -> None:
        self._cgroup_root = cgroup_root
        self._membership = membership

    def snapshot(self, which: int | str) -> Device:
        total, free = host_memory(self._cgroup_root, self._membership)
        return Device(
            index=0,
            uuid="host",
            name=f"{os.cpu_count()} CPUs",
            total_bytes=total,
            used_bytes=total - free,
            free_bytes=free,
            reserved_bytes=0,
            processes=_large_processes(),
            is_host=True,
        )

    def driver(self) -> str:
        return f"{platform.system()} {platform.release()}"

    def close(self) -> None:
        """Nothing is open."""


def host_memory(cgroup_root: Path = _CGROUP_ROOT, membership: Path = _MEMBERSHIP) -> tuple[int, int]:
    """Total and free bytes of the machine, or of the control group where its limit is smaller."""
    memory = psutil.virtual_memory()
    cgroup = cgroup_memory(cgroup_root, membership)
    if cgroup and cgroup.limit_bytes < memory.total:
        return cgroup.limit_bytes, min(memory.available, cgroup.free_bytes)
    return memory.total, memory.available


def cgroup_memory(root: Path, membership: Path) -> CgroupMemory | None:
    """Memory of the process's cgroup v2 (https://docs.kernel.org/admin-guide/cgroup-v2.html), or None without
    a limit. `memory.current` includes the page cache; its inactive part is reclaimed under pressure, so it
    counts as free (as in the kubelet's working set)."""
    try:
        entries = membership.read_text().splitlines()
    except OSError:
        return None
    path = next((entry.removeprefix("0::/") for entry in entries if entry.startswith("0::/")), None)
    if path is None:
        return None
    group = root / path
    levels = [level for level in (group, *group.parents) if level.is_relative_to(root)]
    found = [memory for level in levels if (memory := _level_memory(level))]
    if not found:
        return None
    return CgroupMemory(min(m.limit_bytes for m in found), min(m.free_bytes for m in found))


def _level_memory(group: Path) -> CgroupMemory | None:
    try:
        limit_text = (group / "memory.max").read_text().strip()
        if limit_text == "max":
            return None
        limit = int(limit_text)
        current = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    working_set = max(0, current - int(stat.get("inactive_file", 0)))
    return CgroupMemory(limit, max(0, limit - working_set))


def _large_processes() -> tuple[DeviceProcess, ...]:
    sizes = {
        process.pid: memory.rss
        for process in psutil.process_iter(["memory_info"])
        if (memory := process.info["memory_info"]) and memory.rss >= WORTH_NAMING_BYTES
    }
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    return tuple(DeviceProcess(pid, *describe(pid), size) for pid, size in largest_first)


def describe(pid: int) -> tuple[str | None, str | None]:
    """User and command of a process; None for what cannot be read, as of a vanished or foreign process."""
    try:
        found = psutil.Process(pid).as_dict(["username", "cmdline", "name"])
    except psutil.Error:
        return None, None
    return found["username"], short_command(found["cmdline"] or []) or found["name"]


def short_command(argv: list[str]) -> str:
    """Program and what it runs (`python train.py`, `python -m vllm.entrypoints.openai.api_server`) without
    further arguments, which can contain keys: this text goes to logs and to the status page."""
    if not argv:
        return ""
    words = [argv[0].rsplit("/", 1)[-1]]
    if argv[1:2] == ["-m"]:
        words += argv[1:3]
    elif len(argv) > 1 and not argv[1].startswith("-"):
        words.append(argv[1].rsplit("/", 1)[-1])
    # A process chooses its own argv, and its control characters must not reach a terminal.
    return "".join(char if char.isprintable() else "?" for char in " ".join(words))[:60].rstrip()
