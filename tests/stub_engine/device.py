"""GPU memory of a stub engine: a line in the NVML stub's file (see tests/stub_nvml/nvml.c), that counts while
the process lives."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable
from pathlib import Path


def take_memory(pid: int, size: int, *, stays: bool = False) -> None:
    kind = "proc" if stays else "live"
    _edit(lambda rows: [*rows, [kind, _place(rows), str(pid), str(size), *_list()]])


def claim(pid: int, fraction: float, context_bytes: int) -> None:
    """As `request_memory` in vllm/v1/worker/utils.py: what is free beside the context is compared with the
    fraction of the total. Raises `ValueError` in vLLM's words."""

    def take(rows: list[list[str]]) -> list[list[str]]:
        place = _place(rows)
        total, used, reserved = next(
            map(int, row[4:7]) for row in rows if row[0] in {"gpu", "mig"} and row[1] == place
        )
        used += sum(int(row[3]) for row in rows if row[:2] == ["live", place] and _lives(row[2]))
        total -= reserved
        free, requested = total - used - context_bytes, math.ceil(total * fraction)
        if free < requested:
            raise ValueError(
                f"Free memory on device cuda:0 ({free / 2**30:.2f}/{total / 2**30:.2f} GiB) on startup is "
                f"less than desired GPU memory utilization ({fraction}, {requested / 2**30:.2f} GiB). "
                "Decrease GPU memory utilization or reduce GPU memory used by other processes."
            )
        return [*rows, ["live", place, str(pid), str(requested + context_bytes), *_list()]]

    _edit(take)


def held(file: Path) -> int:
    """By all engines that live."""
    rows = [line.split("\t") for line in file.read_text().splitlines() if line]
    return sum(int(row[3]) for row in rows if row[0] == "live" and _lives(row[2]))


def held_by(pid: int) -> int:
    if not (name := os.environ.get("NVML_STUB_FILE")):
        return 0
    rows = [line.split("\t") for line in Path(name).read_text().splitlines() if line]
    return sum(int(row[3]) for row in rows if row[0] == "live" and row[2] == str(pid))


def set_memory(pid: int, size: int) -> None:
    """Of a process that holds some."""

    def change(rows: list[list[str]]) -> list[list[str]]:
        return [
            [*row[:3], str(size), *row[4:]] if row[0] == "live" and row[2] == str(pid) else row
            for row in rows
        ]

    _edit(change)


def _list() -> list[str]:
    """The driver lists the clients of MPS apart."""
    return ["mps"] if os.environ.get("CUDA_MPS_PIPE_DIRECTORY") else []


def _place(rows: list[list[str]]) -> str:
    """The first device that CUDA would show: an index or a UUID in CUDA_VISIBLE_DEVICES, else GPU 0."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return next(row[1] for row in rows if row[0] in {"gpu", "mig"} and wanted in row[1:3])


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
