"""Shared memory that an engine's processes made for each other and, killed, cannot remove any more.

Python's `multiprocessing.shared_memory` makes files named /dev/shm/psm_*; vLLM's workers exchange messages
through them. They hold the host's memory until somebody removes them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

_MAPPED = re.compile(r" (/dev/shm/psm_\w+)$", re.MULTILINE)


def segments(pids: Collection[int]) -> frozenset[str]:
    """The files that these processes have mapped (proc_pid_maps(5)). Blocks, see `census.py`."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found.update(_MAPPED.findall(Path(f"/proc/{pid}/maps").read_text(errors="replace")))
    return frozenset(found)


def remove(files: Iterable[str]) -> None:
    """Once none of the processes is left."""
    for file in files:
        with contextlib.suppress(OSError):  # it has been removed in time
            Path(file).unlink()
