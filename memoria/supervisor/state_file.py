"""What the daemon is about to spawn and has spawned, in a file that outlives it.

The second line of defence against engines of a killed daemon (the first: each process dies with its parent;
the third: the marker in the environment). An entry is written *before* the spawn, and completed with the
process id and the time at which the kernel started it. At the next start a process is only taken for a
leftover when the machine was not booted since and both still agree: a process id that was given to somebody
else has another start time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path

logger = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Spawned:
    """`run` is the start's id; `started` in clock ticks since boot (proc_pid_stat(5)). Without a `pid` the
    daemon ended between the intent and the spawn's success: then only the marker can tell."""

    run: str
    engine: str
    pid: int | None = None
    started: int | None = None


class StateFile:
    """Only the holder of the runtime directory's lock writes it. No failure to write may stop an engine."""

    def __init__(self, path: Path, *, proc: Path = PROC, boot_id: Path = BOOT_ID) -> None:
        self.path, self._proc = path, proc
        self._boot = boot_id.read_text().strip()
        self._known: dict[str, Spawned] = {}

    def intend(self, run: str, engine: str) -> None:
        self._known[run] = Spawned(run, engine)
        self._write()

    def spawned(self, run: str, pid: int) -> None:
        self._known[run] = replace(self._known[run], pid=pid, started=started(pid, self._proc))
        self._write()

    def ended(self, run: str) -> None:
        if self._known.pop(run, None) is not None:
            self._write()

    def leftovers(self) -> list[Spawned]:
        """The living processes that an earlier daemon spawned; of an unreadable file none."""
        try:
            state = json.loads(self.path.read_text())
            if state["boot"] != self._boot:
                return []
            known = [Spawned(**entry) for entry in state["spawned"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not read: %r", self.path, error)
            return []
        return [
            entry
            for entry in known
            if entry.pid is not None
            and entry.started is not None
            and started(entry.pid, self._proc) == entry.started
        ]

    def kill_leftovers(self) -> list[int]:
        """SIGKILLs each leftover with its process group (an engine leads a session of its own); returns the
        ids of the leaders. Then the file begins anew."""
        killed = []
        for entry in self.leftovers():
            assert entry.pid is not None
            if _kill(entry.pid, entry.started, self._proc):
                killed.append(entry.pid)
        self._known.clear()
        self._write()
        return killed

    def _write(self) -> None:
        state = {"boot": self._boot, "daemon": os.getpid(), "spawned": [*map(asdict, self._known.values())]}
        draft = self.path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(state))
            draft.replace(self.path)  # no fsync: after a crash of the machine it would be of another boot
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error.strerror)


def started(pid: int, proc: Path = PROC) -> int | None:
    """When the kernel started a process, in clock ticks since boot; None for one that is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # the command's name, in parentheses, may hold anything; the 22nd field is the 20th after it
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _kill(pid: int, since: int | None, proc: Path) -> bool:
    """A descriptor means one process for ever: if the id changes hands, before the look or after it, the
    signal meets nobody. (A group has only a number; it is named right after the look.)"""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if started(pid, proc) != since:
            return False
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError as error:
        logger.debug("pid %d: %s", pid, error)
        return False
    finally:
        os.close(descriptor)
    return True
