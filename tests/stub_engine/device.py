"""GPU memory of a stub engine: a line in the NVML stub's file (see tests/stub_nvml/nvml.c)."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable
from pathlib import Path


def take_memory(pid: int, size: int) -> None:
    def take(rows: list[list[str]]) -> list[list[str]]:
        return [*_with_used(rows, size), ["proc", "0", str(pid), str(size)]]

    _edit(take)


def claim(pid: int, fraction: float, context_bytes: int) -> None:
    """As `request_memory` in vllm/v1/worker/utils.py: what is free beside the context is compared with the
    fraction of the total. Raises `ValueError` in vLLM's words."""

    def take(rows: list[list[str]]) -> list[list[str]]:
        total, used, reserved = next(map(int, row[4:7]) for row in rows if row[:2] == ["gpu", "0"])
        total -= reserved
        free, requested = total - used - context_bytes, math.ceil(total * fraction)
        if free < requested:
            raise ValueError(
                f"Free memory on device cuda:0 ({free / 2**30:.2f}/{total / 2**30:.2f} GiB) on startup is "
                f"less than desired GPU memory utilization ({fraction}, {requested / 2**30:.2f} GiB). "
                "Decrease GPU memory utilization or reduce GPU memory used by other processes."
            )
        size = requested + context_bytes
        return [*_with_used(rows, size), ["proc", "0", str(pid), str(size)]]

    _edit(take)


def give_memory_back(pid: int) -> None:
    def give_back(rows: list[list[str]]) -> list[list[str]]:
        held = sum(int(row[3]) for row in rows if row[0] == "proc" and row[2] == str(pid))
        return _with_used([row for row in rows if row[0] != "proc" or row[2] != str(pid)], -held)

    _edit(give_back)


def _with_used(rows: list[list[str]], change: int) -> list[list[str]]:
    return [[*row[:5], str(int(row[5]) + change), row[6]] if row[:2] == ["gpu", "0"] else row for row in rows]


def _edit(change: Callable[[list[list[str]]], list[list[str]]]) -> None:
    if not (name := os.environ.get("NVML_STUB_FILE")):
        return
    path = Path(name)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [line.split("\t") for line in path.read_text().splitlines() if line]
        draft = path.with_suffix(".stub")
        draft.write_text("".join("\t".join(row) + "\n" for row in change(rows)))
        draft.replace(path)
