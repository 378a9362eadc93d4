"""An engine's log: a file that the engine writes by its own descriptor, and memoria reads and rotates.

No pipe stands between them, so neither a slow nor a dead memoria can stall an engine. The file is opened for
appending, so it can be rotated while it is written: its content is copied away, then it is truncated
(logrotate's `copytruncate`; lines written between the two are lost).

The files of one log are `engine.log` and, older, `engine.log.1`, `.2`, ... After a rotation a reader finds
its place by the bytes before it. No file is ever held in memory as a whole.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memoria.config.model import Logging
from memoria.errors import Problem, UnavailableError
from memoria.vllm.log_lines import time_of

logger = logging.getLogger(__name__)

LONGEST_LINE = 4096  # bytes; the rest of a longer line is dropped
READ_AT_ONCE = 1 << 20  # bytes
TAIL_BYTES = 256 << 10
_BLOCK = 1 << 16  # bytes
_MARK = 256  # bytes that identify a place in a file
_ELSEWHERE = "choose another directory with `log: {dir: ...}`, or fix its permissions"
_BEGIN = re.compile(rb"[\r\n](?=[^\r\n])")


class Follower:
    """Reads complete lines as they are appended. `skips_floods`: where more than `READ_AT_ONCE` bytes were
    appended between two calls, only the end is read."""

    def __init__(self, path: Path, position: int = 0, *, skips_floods: bool = False) -> None:
        self._path, self._position, self._skips_floods = path, position, skips_floods
        self._rest = b""  # of a line whose end is not written yet
        self._mark = b""  # the bytes before the position
        self._seen = _State(0, position, 0)  # of the file at the last look
        self._newest = _state(numbered(path, 1))  # of the newest rotated file at the last look
        if position:
            try:
                with path.open("rb") as file:
                    self._mark = _read(file, position - _MARK, position)
            except OSError:
                self._position = 0

    @property
    def has_more(self) -> bool:
        return _state(self._path) not in {self._seen, None}

    def new_lines(self) -> Iterator[str]:
        """Must be exhausted. Raises `OSError`, except for a missing file."""
        if not self.has_more:
            return
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for data in self._appended(file):
                yield from self.lines_of(data)

    def lines_of(self, data: bytes) -> Iterator[str]:
        """The complete lines; the first one begins with what was left over."""
        *complete, rest = _split(self._rest + data)
        self._rest = rest[:LONGEST_LINE]
        yield from _texts(complete)

    def rest(self) -> Iterator[str]:
        """The last line, if it is not complete yet; it is given only once."""
        rest, self._rest = self._rest, b""
        yield from _texts([rest])

    def _appended(self, file: BinaryIO) -> Iterator[bytes]:
        self._seen = _state_of(os.fstat(file.fileno()))
        newest, size = _state(numbered(self._path, 1)), self._seen.size
        if not self._is_at(file) or not self._mark:
            yield from self._rotated_meanwhile(file)
            self._position, self._mark = 0, b""
        self._newest = newest
        if self._skips_floods and size - self._position > READ_AT_ONCE:
            self._position, self._rest = size - READ_AT_ONCE, b""
        file.seek(self._position)
        while self._position < size:
            data = file.read(min(READ_AT_ONCE, size - self._position))
            if not data:  # truncated just now: the next call finds the rest
                return
            self._position += len(data)
            self._mark = (self._mark + data)[-_MARK:]
            yield data

    def _is_at(self, file: BinaryIO) -> bool:
        return _read(file, self._position - len(self._mark), self._position) == self._mark

    def _rotated_meanwhile(self, current: BinaryIO) -> Iterator[bytes]:
        """What was appended before the file was truncated, as far as it was kept."""
        with ExitStack() as stack:
            missed: list[BinaryIO] = []
            for file in _open_older(self._path, stack):
                if self._mark and self._is_at(file):
                    file.seek(self._position)
                    missed.append(file)
                    break
                if not self._mark and _state_of(os.fstat(file.fileno())) == self._newest:
                    break
                if not _is_copy(file, current):
                    file.seek(0)
                    missed.append(file)
            else:
                if self._mark:  # its place was not kept: what remains may begin within a line
                    missed, self._rest = [], b""
            for file in reversed(missed):
                while data := file.read(READ_AT_ONCE):
                    yield data
                    if self._skips_floods:
                        break


class _State(NamedTuple):
    """Equal for the same, unchanged file, whatever its name."""

    inode: int
    size: int
    changed: int


class _Piece(NamedTuple):
    """A rotated file, found by its inode under any name."""

    inode: int
    begin: int


class LogReader:
    """`history` once, then `new_lines` repeatedly: no line twice, none that was kept is missing.

    History is the last `lines` (None: all), from `begin` on (local time) if that is given. Raises `OSError`
    for a file that may not be read."""

    def __init__(self, path: Path, *, lines: int | None, begin: datetime | None = None) -> None:
        self._path = path
        self._older: list[_Piece] = []
        try:
            current = path.open("rb")
        except FileNotFoundError:
            self._follower = Follower(path)
            return
        with ExitStack() as stack:
            stack.enter_context(current)
            older = [file for file in _open_older(path, stack) if not _is_copy(file, current)]
            files = [*reversed(older), current]
            sizes = [os.fstat(file.fileno()).st_size for file in files]
            first, offset = max(_begin_of_last(files, sizes, lines), _begin_since(files, sizes, begin))
            for number, file in enumerate(files[:-1]):
                if number >= first:
                    inode = os.fstat(file.fileno()).st_ino
                    self._older.append(_Piece(inode, offset if number == first else 0))
            self._follower = Follower(path, offset if first == len(files) - 1 else 0)

    def history(self, *, whole: bool) -> Iterator[str]:
        """Must be exhausted, once. `whole`: with a last line that is not complete yet."""
        for piece in self._older:
            with ExitStack() as stack:
                for file in _open_older(self._path, stack):
                    if os.fstat(file.fileno()).st_ino == piece.inode:
                        file.seek(piece.begin)
                        while data := file.read(READ_AT_ONCE):
                            yield from self._follower.lines_of(data)
        yield from self._follower.new_lines()
        if whole:
            yield from self._follower.rest()

    @property
    def has_more(self) -> bool:
        return self._follower.has_more

    def new_lines(self) -> Iterator[str]:
        return self._follower.new_lines()


def numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _open_older(path: Path, stack: ExitStack) -> Iterator[BinaryIO]:
    """The newest first, and each only once even if a rotation renames them meanwhile."""
    seen: set[int] = set()
    number = 1
    while True:
        try:
            file = stack.enter_context(numbered(path, number).open("rb"))
        except (FileNotFoundError, IsADirectoryError):
            return
        inode = os.fstat(file.fileno()).st_ino
        if inode not in seen:
            yield file
        seen.add(inode)
        number += 1


def _is_copy(file: BinaryIO, current: BinaryIO) -> bool:
    """Whether a rotation has just copied `current` to it, and not truncated `current` yet."""
    size = os.fstat(file.fileno()).st_size
    return _read(file, size - _MARK, size) == _read(current, size - _MARK, size)


def _begin_of_last(files: Sequence[BinaryIO], sizes: Sequence[int], lines: int | None) -> tuple[int, int]:
    """Where the last `lines` begin: the file's index and the byte in it."""
    if lines is None:
        return 0, 0
    if lines == 0:
        return len(files) - 1, sizes[-1]
    for number in range(len(files) - 1, -1, -1):
        for end in range(sizes[number], 0, -_BLOCK):
            begin = max(0, end - _BLOCK)
            data = _read(files[number], begin - 1, end) if begin else b"\n" + _read(files[number], 0, end)
            begins = [match.end() for match in _BEGIN.finditer(data)]
            if len(begins) >= lines:
                return number, begin - 1 + begins[-lines]
            lines -= len(begins)
    return 0, 0


def _begin_since(files: Sequence[BinaryIO], sizes: Sequence[int], begin: datetime | None) -> tuple[int, int]:
    """Where the first line of `begin` or later stands: the file's index and the byte in it."""
    if begin is None:
        return 0, 0
    now = datetime.now()
    found = len(files) - 1, sizes[-1]
    for number in range(len(files) - 1, -1, -1):
        file, place, is_older = files[number], 0, False
        file.seek(0)
        while place < sizes[number] and (line := file.readline(LONGEST_LINE)):
            at = time_of(line.decode(errors="replace"), now)
            if at is not None and at >= begin:
                found = number, place
                break
            is_older |= at is not None
            place += len(line)
        if is_older:
            break
    return found


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    begin = max(0, begin)
    file.seek(begin)
    return file.read(end - begin)


def _state_of(facts: os.stat_result) -> _State:
    return _State(facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _state(path: Path) -> _State | None:
    try:
        return _state_of(path.stat())
    except FileNotFoundError:
        return None


def _split(data: bytes) -> list[bytes]:
    """tqdm redraws its bar with carriage returns: each redraw counts as a line."""
    return data.replace(b"\r", b"\n").split(b"\n")


def _texts(lines: Sequence[bytes]) -> Iterator[str]:
    for line in lines:
        if line:
            yield line[:LONGEST_LINE].decode(errors="replace")


class LogFile:
    """`<dir>/<engine>.log`, and up to `keep` rotated files `.1`, `.2`, ... of about `max_bytes` each."""

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self.path, self._max_bytes, self._keep = path, max_bytes, keep

    @classmethod
    def of(cls, logging_: Logging, engine: str) -> LogFile:
        return cls(logging_.dir / f"{engine}.log", max_bytes=logging_.max_bytes, keep=logging_.keep)

    def limit(self, *, max_bytes: int, keep: int) -> None:
        """Change the bounds, from the next rotation on."""
        self._max_bytes, self._keep = max_bytes, keep

    def open(self) -> int:
        """A descriptor for a child, close-on-exec. Raises `UnavailableError` when it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            what = f"cannot write the log file {self.path}: {error.strerror}"
            raise UnavailableError(what, hint=_ELSEWHERE) from None

    def try_out(self) -> None:
        """Raises `UnavailableError` if it cannot be written or read."""
        os.close(self.open())
        if problem := self.problem():
            raise UnavailableError(problem)

    def problem(self) -> Problem | None:
        """Why an engine could not write it, or memoria not read it. Creates nothing."""
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
        """Raises nothing: on a full disk, which must not harm a running engine, the log is only truncated.
        Rotated files keep the log's mode."""
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
        """Move another log here, with its writer, and rotate this one away. Raises nothing."""
        try:
            self._make_room()
            if self._keep and self.path.exists():
                self.path.replace(numbered(self.path, 1))
            other.path.replace(self.path)
        except OSError as error:
            logger.warning("%s: could not be replaced: %s", self.path, error)

    def tail(self, lines: int, since: int = 0) -> list[str]:
        """The last lines of the current file, from byte `since` on; at most 256 KiB."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
                return list(_texts(_split(file.read())))[-lines:] if lines else []
        except OSError:
            return []

    def follow(self) -> Follower:
        """A reader of what is appended from now on; of a flood it reads only the end."""
        return Follower(self.path, self.size(), skips_floods=True)

    def _make_room(self) -> None:
        """Renumber the rotated files for a new `.1`. Raises `OSError`."""
        for number in range(self._keep - 1, 0, -1):
            older = numbered(self.path, number)
            if older.exists():
                older.replace(numbered(self.path, number + 1))
