"""The daemon's runtime directory: 0700, one daemon at a time, nothing left over from one that was killed."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from stat import S_ISDIR, S_ISVTX, S_IWOTH
from types import TracebackType
from typing import Self

from memoria.engine.process.marker import kill_marked, marked
from memoria.errors import Problem, UnavailableError
from memoria.supervisor.state_file import StateFile

logger = logging.getLogger(__name__)

KILL_PATIENCE = 10.0  # seconds until a killed process, and its device memory with it, is gone


def replaceable(path: Path, trusted: Collection[int]) -> str | None:
    """Why somebody else than the `trusted` users could put another directory in this one's place, or lead to
    it by a link of theirs. In a sticky directory, as /tmp is, only a file's owner can replace it (inode(7)).

    In a user namespace root's directories belong to another number: that of `/`."""
    ways = [path, *path.parents, *(real := path.resolve()).parents, real]
    for place in dict.fromkeys(sorted(ways, key=lambda place: len(place.parts))):
        facts = place.lstat()
        if facts.st_uid not in trusted:
            return f"{place} belongs to another user"
        if S_ISDIR(facts.st_mode) and facts.st_mode & S_IWOTH and not facts.st_mode & S_ISVTX:
            return f"everybody can replace what is in {place}"
    return None


class RuntimeDir:
    """Held while it is entered. A second daemon on the same configuration finds the lock taken.

    `patience`: seconds to wait for one that ends. `killed` are the engine processes that a killed daemon had
    left running."""

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        self.path, self._patience = path, patience
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

    def is_held(self) -> bool:
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
        """Why a daemon could not run here, as far as can be told without making anything."""
        there = next(place for place in (self.path, *self.path.parents) if os.path.lexists(place))
        try:
            if not there.is_dir():
                raise NotADirectoryError(0, f"{there} is not a directory")
            self._judge(there)
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
            for folder in (*reversed(self.path.parents), self.path):  # mkdir's `parents` would be open ones
                folder.mkdir(exist_ok=True, mode=0o700)
            self._own()
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
                    "look at it with `memoria status`; stop it first, or use another configuration file",
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
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    def _close(self) -> None:
        """Gives the lock back. The lock file stays: removing it could split a lock between two daemons."""
        for left in self._sockets():
            left.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sockets(self) -> list[Path]:
        own = (self.admin_socket, self.gate_socket, self.handover_socket)
        return [*own, *self.engines.glob("*.sock")]

    def _own(self) -> None:
        """mkdir's mode says nothing of a directory that was there: it must be ours and closed to others."""
        facts = self.path.stat()
        if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            self.path.chmod(0o700)
        self._judge(self.path)

    def _judge(self, there: Path) -> None:
        """`there` is the directory, or the nearest one above it that is there."""
        if there == self.path and there.stat().st_uid != os.getuid():
            raise PermissionError(0, "it belongs to another user")
        if reason := replaceable(there, {0, os.getuid(), Path("/").stat().st_uid}):
            raise PermissionError(0, reason)

    def _clear(self) -> None:
        # holding the lock, every process that calls this gate its own is a leftover
        known = self.state.kill_leftovers()
        self.killed = sorted({*known, *kill_marked("MEMORIA_GATE", str(self.gate_socket))})
        deadline = time.monotonic() + KILL_PATIENCE
        while self.own_pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        if immortal := self.own_pids():
            logger.error("left by a daemon that was killed, and no signal ends them: pids %s", immortal)
        self.engines.mkdir(exist_ok=True, mode=0o700)
        for left in self._sockets():
            left.unlink(missing_ok=True)
