"""Finding an engine's processes by a variable in their environment, which stays when they leave their session
or group and when init adopts them.

All of this may block, see `table.py`. Running out of descriptors raises: a living tree must not look empty.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

START = "MEMORIA_START"  # names one start of an engine


def marked(variable: str, value: str) -> list[int]:
    """Ids of the processes whose environment holds `variable=value`; those of other users are not seen.
    Raises `OSError`."""
    return [pid for pid, found in _environments() if value_in(found, variable) == value]


def process_ids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def environ(pid: int) -> bytes | None:
    """None for a process that is gone, or is another user's. Raises `OSError` when it cannot be known."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def value_in(found: bytes, variable: str) -> str | None:
    """Of a variable in a process's environment, as /proc gives it."""
    name = b"\0" + variable.encode() + b"="
    _, sign, rest = (b"\0" + found).rpartition(name)
    return rest.partition(b"\0")[0].decode(errors="replace") if sign else None


def kill_marked(variable: str, value: str) -> list[int]:
    """SIGKILLs every process so marked, except this one; returns their ids. Raises `OSError`."""
    found = [pid for pid in marked(variable, value) if pid != os.getpid()]
    for pid in found:
        kill_one(pid, variable, value)
    return found


def kill_one(pid: int, variable: str, value: str) -> None:
    """By a descriptor, which means one process for ever: if the id is reused, before the check or after it,
    no other process is hit. Raises `OSError` when there is no descriptor left."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if value_in(environ(pid) or b"", variable) == value:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, PermissionError) as error:
        logger.debug("pid %d: %s", pid, error)
    finally:
        os.close(descriptor)


def _environments() -> Iterator[tuple[int, bytes]]:
    for pid in process_ids():
        if (found := environ(pid)) is not None:
            yield pid, found
