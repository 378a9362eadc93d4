"""GPU memory of a stub engine: a line in the NVML stub's file (see tests/stub_nvml/nvml.c)."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable
from pathlib import Path


def take_memory(pid: int, size: int) -> None:
    def take(rows: list[list[str]]) -> list[list[str]]:
        place = _place(rows)
        return [*_with_used(rows, place, size), ["proc", place, str(pid), str(size)]]

    _edit(take)


def claim(pid: int, fraction: float, context_bytes: int) -> None:
    """As `request_memory` in vllm/v1/worker/utils.py: what is free beside the context is compared with the
    fraction of the total. Raises `ValueError` in vLLM's words."""

    def take(rows: list[list[str]]) -> list[list[str]]:
        place = _place(rows)
        total, used, reserved = next(map(int, row[4:7]) for row in rows if _is_at(row, place))
        total -= reserved
        free, requested = total - used - context_bytes, math.ceil(total * fraction)
        if free < requested:
            raise ValueError(
                f"Free memory on device cuda:0 ({free / 2**30:.2f}/{total / 2**30:.2f} GiB) on startup is "
                f"less than desired GPU memory utilization ({fraction}, {requested / 2**30:.2f} GiB). "
                "Decrease GPU memory utilization or reduce GPU memory used by other processes."
            )
        size = requested + context_bytes
        return [*_with_used(rows, place, size), ["proc", place, str(pid), str(size)]]

    _edit(take)


def give_memory_back(pid: int) -> None:
    def give_back(rows: list[list[str]]) -> list[list[str]]:
        for row in rows:
            if row[0] == "proc" and row[2] == str(pid):
                rows = _with_used(rows, row[1], -int(row[3]))
        return [row for row in rows if row[0] != "proc" or row[2] != str(pid)]

    _edit(give_back)


def _place(rows: list[list[str]]) -> str:
    """The first device that CUDA would show: an index or a UUID in CUDA_VISIBLE_DEVICES, else GPU 0."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return next(row[1] for row in rows if row[0] in {"gpu", "mig"} and wanted in row[1:3])


def _is_at(row: list[str], place: str) -> bool:
    return row[0] in {"gpu", "mig"} and row[1] == place


def _with_used(rows: list[list[str]], place: str, change: int) -> list[list[str]]:
    return [[*row[:5], str(int(row[5]) + change), row[6]] if _is_at(row, place) else row for row in rows]


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
