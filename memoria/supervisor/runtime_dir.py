"""The daemon's runtime directory: 0700, one daemon at a time, nothing left over from one that was killed.

Three lines of defence against engines of a killed daemon: each process dies with its parent; the state file
names every process that was spawned; the environment of each carries a marker.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISVTX, S_IWOTH
from types import TracebackType
from typing import Self

from memoria.engine.process.marker import kill_if, kill_marked, marked
from memoria.errors import Problem, UnavailableError

logger = logging.getLogger(__name__)

KILL_TIMEOUT = 10.0  # seconds until a killed process, and its device memory with it, is gone
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROC = Path("/proc")


def replaceable(path: Path, trusted: Collection[int], *, closing: bool = False) -> str | None:
    """Why a user who is not `trusted` could replace this directory, or redirect it by a link; None where none
    could. In a sticky directory, as /tmp is, only a file's owner can replace it (inode(7)).

    `closing`: it will be closed to others, so its own mode does not count. In a user namespace root's
    directories belong to another number: that of `/`."""
    ways = [path, *path.parents, *(real := path.resolve()).parents, real]
    open_ones = (path, real) if closing else ()
    for place in dict.fromkeys(sorted(ways, key=lambda place: len(place.parts))):
        facts = place.lstat()
        if facts.st_uid not in trusted:
            return f"{place} belongs to another user"
        is_open = S_ISDIR(facts.st_mode) and facts.st_mode & S_IWOTH and not facts.st_mode & S_ISVTX
        if is_open and place not in open_ones:
            return f"every user can replace what is in {place}"
    return None


def _trusted() -> set[int]:
    return {0, os.getuid(), Path("/").stat().st_uid}


class RuntimeDir:
    """Locked while it is entered: a second daemon on the same configuration is refused.

    `lock_timeout`: seconds to wait for a daemon that is ending. `killed`: the engine processes that a killed
    daemon had left running."""

    def __init__(self, path: Path, *, lock_timeout: float = 0.0) -> None:
        self.path, self._lock_timeout = path, lock_timeout
        self.killed: list[int] = []
        self.state = StateFile(path / "state.json")
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def admin_socket(self) -> Path:
        return self.path / "admin.sock"

    @property
    def handover_socket(self) -> Path:
        return self.path / "handover.sock"

    @property
    def gate_socket(self) -> Path:
        return self.path / "gate.sock"

    @property
    def engines(self) -> Path:
        return self.path / "engines"

    def is_locked(self) -> bool:
        """Whether a daemon runs here."""
        try:
            with (self.path / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def problem(self) -> Problem | None:
        """Why a daemon could not run here, as far as can be known without creating anything."""
        there = next(place for place in (self.path, *self.path.parents) if os.path.lexists(place))
        try:
            if not there.is_dir():
                raise NotADirectoryError(0, f"{there} is not a directory")
            self._check_owner(there)
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(0, f"nothing can be written in {there}")
        except OSError as error:
            return self._unusable(error)
        return None

    def socket_of(self, start_id: str) -> Path:
        """Where one start of an engine listens."""
        return self.engines / f"{start_id}.sock"

    def own_pids(self) -> list[int]:
        """The processes of engines whose daemon lives, or lived, here."""
        return marked("MEMORIA_GATE", str(self.gate_socket))

    def _open(self) -> None:
        """Takes the lock and clears what a killed daemon left. Raises `UnavailableError`."""
        try:
            for folder in (*reversed(self.path.parents), self.path):  # mkdir's `parents` would not be closed
                folder.mkdir(exist_ok=True, mode=0o700)
            self._own()
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnavailableError(self._unusable(error)) from None
        try:
            self._take(lock)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise UnavailableError(
                Problem(
                    "memoria is already running with this configuration"
                    + (f", pid {holder}" if holder else ""),
                    (str(self.path),),
                    "see `memoria status`; stop it first, or use another configuration file",
                )
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock
        self._clear()

    def _unusable(self, error: OSError) -> Problem:
        what = f"cannot use the runtime directory {self.path}: {error.strerror}"
        return Problem(what, hint="set `runtime_dir` in the configuration, or MEMORIA_RUNTIME_DIR")

    def _take(self, lock: int) -> None:
        """Raises `BlockingIOError`."""
        deadline = time.monotonic() + self._lock_timeout
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    def _close(self) -> None:
        """Releases the lock. The lock file stays: removing it could split a lock between two daemons."""
        for left in self._sockets():
            left.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sockets(self) -> list[Path]:
        own = (self.admin_socket, self.gate_socket, self.handover_socket)
        return [*own, *self.engines.glob("*.sock")]

    def _own(self) -> None:
        """A directory that existed keeps its mode through mkdir: it must be ours and closed to others. It is
        judged first, and what is closed is what was judged; links that others put there are refused."""
        self._check_owner(self.path, closing=True)
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            facts = os.fstat(folder)
            if facts.st_uid != os.getuid():
                raise PermissionError(0, "it belongs to another user")
            if facts.st_mode & 0o077:
                os.fchmod(folder, 0o700)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_uid not in _trusted():
                        raise PermissionError(0, f"{entry.name} in it belongs to another user")
        finally:
            os.close(folder)
        self._check_owner(self.path)

    def _check_owner(self, there: Path, *, closing: bool = False) -> None:
        """`there` is the directory, or the nearest one above it that exists."""
        if there == self.path and there.stat().st_uid != os.getuid():
            raise PermissionError(0, "it belongs to another user")
        if reason := replaceable(there, _trusted(), closing=closing):
            raise PermissionError(0, reason)

    def _clear(self) -> None:
        # under the lock, every process marked with this gate is a leftover
        known = self.state.kill_leftovers()
        self.killed = sorted({*known, *kill_marked("MEMORIA_GATE", str(self.gate_socket))})
        deadline = time.monotonic() + KILL_TIMEOUT
        while self.own_pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        if immortal := self.own_pids():
            logger.error("left by a killed daemon, and no signal ends them: pids %s", immortal)
        self.engines.mkdir(exist_ok=True, mode=0o700)
        for left in self._sockets():
            left.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class SpawnRecord:
    """`run` is the start's id; `started` in clock ticks since boot (proc_pid_stat(5)). Without a `pid` the
    daemon ended between the intent and the spawn's success: then only the marker identifies the process."""

    run: str
    engine: str
    pid: int | None = None
    started: int | None = None


class StateFile:
    """What the daemon is about to spawn and has spawned, in a file that outlives it. Written only under the
    runtime directory's lock; a failure to write never stops an engine.

    An entry is written *before* the spawn, and completed with the process id and the time at which the kernel
    started it. At the next start a process counts as a leftover only if the machine was not booted since and
    both still agree: a process id that was reused has another start time."""

    def __init__(self, path: Path, *, proc: Path = PROC, boot_id: Path = BOOT_ID) -> None:
        self.path, self._proc = path, proc
        self._boot = boot_id.read_text().strip()
        self._known: dict[str, SpawnRecord] = {}

    def intend(self, run: str, engine: str) -> None:
        self._known[run] = SpawnRecord(run, engine)
        self._write()

    def spawned(self, run: str, pid: int) -> None:
        self._known[run] = replace(self._known[run], pid=pid, started=started(pid, self._proc))
        self._write()

    def ended(self, run: str) -> None:
        if self._known.pop(run, None) is not None:
            self._write()

    def leftovers(self) -> list[SpawnRecord]:
        """The living processes that an earlier daemon spawned; none if the file cannot be read."""
        try:
            state = json.loads(self.path.read_text())
            if state["boot"] != self._boot:
                return []
            known = [SpawnRecord(**entry) for entry in state["spawned"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is ignored: %r", self.path, error)
            return []
        return [entry for entry in known if self._is_alive(entry)]

    def _is_alive(self, entry: SpawnRecord) -> bool:
        if entry.pid is None or entry.started is None:
            return False
        return started(entry.pid, self._proc) == entry.started

    def kill_leftovers(self) -> list[int]:
        """SIGKILLs each leftover with its process group (an engine leads a session of its own); returns the
        ids of the leaders. Empties the file."""
        killed = []
        for entry in self.leftovers():
            assert entry.pid is not None
            with contextlib.suppress(OSError):  # no descriptor is left: the marker may still find it
                if kill_if(entry.pid, partial(self._is_alive, entry), group=True):
                    killed.append(entry.pid)
        self._known.clear()
        self._write()
        return killed

    def _write(self) -> None:
        state = {"boot": self._boot, "daemon": os.getpid(), "spawned": [*map(asdict, self._known.values())]}
        draft = self.path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(state))
            draft.replace(self.path)  # no fsync: after a crash of the machine it is of another boot
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.path, error.strerror)


def started(pid: int, proc: Path = PROC) -> int | None:
    """When the kernel started a process, in clock ticks since boot; None for one that is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # the command's name, in parentheses, may contain anything; the 22nd field is the 20th after it
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
