"""Finding an engine's processes by a variable in their environment, wherever they moved and whoever adopted
them: a session or a group can be left, an environment stays."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


def marked(variable: str, value: str) -> list[int]:
    """Ids of the processes whose environment holds `variable=value`; those of other users are not seen."""
    needle = f"{variable}={value}".encode()
    return [pid for pid, environ in _environments() if needle in environ.split(b"\0")]


def values_of(variable: str) -> dict[int, str]:
    """What the variable holds in every process that has it, by the process's id."""
    name = f"{variable}=".encode()
    return {
        pid: entry.removeprefix(name).decode(errors="replace")
        for pid, environ in _environments()
        for entry in environ.split(b"\0")
        if entry.startswith(name)
    }


def _environments() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "environ").read_bytes()
            except OSError:  # gone, or another user's
                continue


def kill_marked(variable: str, value: str) -> list[int]:
    """SIGKILLs every process so marked, except this one; returns their ids."""
    found = [pid for pid in marked(variable, value) if pid != os.getpid()]
    for pid in found:
        kill_one(pid)
    return found


def kill_one(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError) as error:
        logger.debug("pid %d: %s", pid, error)
