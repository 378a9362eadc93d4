"""An engine's processes, found by a variable in their environment: it survives a change of session or group,
and adoption by init.

Every call may block, see `table.py`, and raises when descriptors run out: a living tree must not look empty.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

START = "MEMORIA_START"  # names one start of an engine


def marked(variable: str, value: str) -> list[int]:
    """Ids of this user's processes whose environment has `variable=value`. Raises `OSError`."""
    return [pid for pid, found in _environments() if value_in(found, variable) == value]


def process_ids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def environ(pid: int) -> bytes | None:
    """None for a process that is gone or another user's. Raises `OSError` if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def value_in(found: bytes, variable: str) -> str | None:
    """The value of a variable in an environment as /proc gives it."""
    name = b"\0" + variable.encode() + b"="
    _, sign, rest = (b"\0" + found).rpartition(name)
    return rest.partition(b"\0")[0].decode(errors="replace") if sign else None


def kill_marked(variable: str, value: str) -> list[int]:
    """SIGKILL every process so marked, except this one; returns their ids. Raises `OSError`."""
    found = [pid for pid in marked(variable, value) if pid != os.getpid()]
    for pid in found:
        kill_one(pid, variable, value)
    return found


def kill_one(pid: int, variable: str, value: str) -> None:
    """Raises `OSError` if no descriptor is left."""
    kill_if(pid, lambda: value_in(environ(pid) or b"", variable) == value)


def kill_if(pid: int, is_right: Callable[[], bool], *, group: bool = False) -> bool:
    """SIGKILL a process after `is_right` has identified it, with the process group that it leads if `group`.
    Whether it was killed. Raises `OSError` if no descriptor is left.

    A descriptor always refers to the same process: if the id is reused, before the check or after it, no
    other process is hit. (A group has only a number, and is signalled right after the check.)"""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_right():
            return False
        if group and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, PermissionError) as error:
        logger.debug("pid %d: %s", pid, error)
        return False
    finally:
        os.close(descriptor)
    return True


def _environments() -> Iterator[tuple[int, bytes]]:
    for pid in process_ids():
        if (found := environ(pid)) is not None:
            yield pid, found
