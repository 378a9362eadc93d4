"""Finding an engine's processes by a variable in their environment, wherever they moved and whoever adopted
them: a session or a group can be left, an environment stays.

All of this may block, see `census.py`. What cannot be read for want of descriptors raises: a tree that lives
must not look empty.
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


def values_of(variable: str) -> dict[int, str]:
    """What the variable holds in every process that has it, by the process's id. Raises `OSError`."""
    values = {pid: value_in(found, variable) for pid, found in _environments()}
    return {pid: value for pid, value in values.items() if value is not None}


def process_ids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def environ(pid: int) -> bytes | None:
    """None for a process that is gone, or is another user's. Raises `OSError` when nobody can tell."""
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
    """A descriptor means one process for ever: if the id changes hands, before the look or after it, the
    signal meets nobody. Raises `OSError` when there is no descriptor left."""
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
