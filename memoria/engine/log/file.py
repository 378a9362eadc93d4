"""An engine's log: a file that the engine writes through its own descriptor and memoria reads behind it.

No pipe stands between them, so neither a slow nor a dead memoria can stall an engine. The file is opened for
appending; therefore it can be rotated while it is written: its content is copied away, then it is truncated
(logrotate's `copytruncate`; lines written between the two are lost).
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from memoria.config.model import Logging
from memoria.engine.log.reader import LONGEST_LINE, Follower, numbered
from memoria.errors import Problem, UnavailableError

logger = logging.getLogger(__name__)

TAIL_BYTES = 256 << 10
_ELSEWHERE = "choose another directory with `log: {dir: ...}`, or fix its permissions"


class LogFile:
    """`<dir>/<engine>.log`, with `keep` older ones as `.1`, `.2`, ... of at most about `max_bytes` each."""

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path, self._max_bytes, self._keep = path, max_bytes, keep

    @classmethod
    def of(cls, logging_: Logging, engine: str) -> LogFile:
        return cls(logging_.dir / f"{engine}.log", max_bytes=logging_.max_bytes, keep=logging_.keep)

    def limit(self, *, max_bytes: int, keep: int) -> None:
        """Set other bounds, from the next rotation on."""
        self._max_bytes, self._keep = max_bytes, keep

    def open(self) -> int:
        """A descriptor for a child, close-on-exec. Raises `UnavailableError` when it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise UnavailableError(
                Problem(
                    f"cannot write the log file {self.path}: {error.strerror}",
                    hint=_ELSEWHERE,
                )
            ) from None

    def try_out(self) -> None:
        """Raises `UnavailableError` where `open` would, and where what was written cannot be read."""
        os.close(self.open())
        if problem := self.problem():
            raise UnavailableError(problem)

    def problem(self) -> Problem | None:
        """What would keep an engine from writing it, or memoria from reading it; creates nothing."""
        folder = next(place for place in self.path.parents if os.access(place, os.F_OK))
        if os.path.lexists(self.path):
            verb = "write" if not os.access(self.path, os.W_OK) else "read"
            fine = self.path.is_file() and os.access(self.path, os.R_OK | os.W_OK)
        else:
            verb = "write"
            fine = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        return None if fine else Problem(f"cannot {verb} the log file {self.path}", hint=_ELSEWHERE)

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def is_large(self) -> bool:
        return self.size() > self._max_bytes

    def rotate_if_large(self) -> bool:
        """Raises nothing: a full disk must not harm a running engine, so then the log is only truncated.
        Old logs keep the mode of the first."""
        if not self.is_large:
            return False
        try:
            self._make_room()
            if self._keep:
                shutil.copy(self.path, numbered(self.path, 1))
        except OSError as error:
            logger.warning("%s: the old log could not be kept: %s", self.path, error)
        try:
            os.truncate(self.path, 0)
        except OSError as error:
            logger.warning("%s: could not be truncated: %s", self.path, error)
            return False
        return True

    def beside(self, what: str) -> LogFile:
        """`<dir>/<engine>.<what>.log`, within the same bounds."""
        path = self.path.with_name(f"{self.path.stem}.{what}{self.path.suffix}")
        return LogFile(path, max_bytes=self._max_bytes, keep=self._keep)

    def replace_with(self, other: LogFile) -> None:
        """Put the other file in this one's place, with its writer; this one is kept as if it were too large.
        Raises nothing."""
        try:
            self._make_room()
            if self._keep and self.path.exists():
                self.path.replace(numbered(self.path, 1))
            other.path.replace(self.path)
        except OSError as error:
            logger.warning("%s: could not be replaced: %s", self.path, error)

    def tail(self, lines: int, since: int = 0) -> list[str]:
        """The last lines from byte `since` on, of the current file; at most 256 KiB of them."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
                return _split_lines(file.read())[-lines:] if lines else []
        except OSError:
            return []

    def follow(self) -> Follower:
        """A reader from now on; of a flood it reads only the end."""
        return Follower(self.path, self.size(), skips_floods=True)

    def _make_room(self) -> None:
        """For a new `.1`. Raises `OSError`."""
        for number in range(self._keep - 1, 0, -1):
            older = numbered(self.path, number)
            if older.exists():
                older.replace(numbered(self.path, number + 1))


def _split_lines(data: bytes) -> list[str]:
    lines = data.replace(b"\r", b"\n").split(b"\n")
    return [line[:LONGEST_LINE].decode(errors="replace") for line in lines if line]
