"""What a target costs: processor time and memory of its processes, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

PROC = Path("/proc")


def family(pid: int) -> tuple[int, ...]:
    """A process and all that descend from it."""
    return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))


def processor_ns(pids: Iterable[int]) -> int:
    """Nanoseconds on a processor, of all threads (proc_schedstat: the first field)."""
    files = (file for pid in pids for file in (PROC / str(pid) / "task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[0]) for file in files)


def machine_ns() -> int:
    """Nanoseconds that the machine's processors have worked, for anybody (proc_stat(5); steps of 10 ms)."""
    user, nice, system, _, _, irq, softirq, *_ = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = sum(map(int, (user, nice, system, irq, softirq)))
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK")


def memory_mib(pids: Iterable[int]) -> float:
    """Proportional set size: what processes share is counted once."""
    total = 0
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024
