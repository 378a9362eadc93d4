"""API keys: a file with one `name: key` line per key, reread when it changes.

    # client: its key
    chat: 0f3c...
    nightly-batch=9b1d...

Blank lines and lines that begin with `#` are ignored. A name may have several keys, so that one can be
replaced without a gap; a key has one name. Only digests are kept in memory.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import NamedTuple, Self

from memoria.aio import in_daemon_thread
from memoria.config.model import Access
from memoria.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

# Seconds without a change after which a file is not being written any more; longer where its last line has no
# end, since a part of a key could pass for a key.
SETTLED = 1.0
UNFINISHED = 15.0
SHORTEST_KEY = 16  # characters; a shorter one can be guessed over a network
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,62})\s*[:=]\s*(?P<key>[\x21-\x7e]+)")
_HINT_KEY = "generate a key with: openssl rand -hex 32"


class _Version(NamedTuple):
    mtime_ns: int
    size: int
    inode: int
    ctime_ns: int

    def was_renamed(self, before: _Version) -> bool:
        """rename(2) gives another inode, and changes nothing but its ctime."""
        return self.inode != before.inode and self.ctime_ns > self.mtime_ns


class _Key(NamedTuple):
    name: str
    digest: bytes


_Read = tuple[tuple[_Key, ...], _Version | None]
_Seen = _Read | tuple[ConfigError, _Version | None]


class KeyRing:
    """The keys of a file. `on_change` is called after they were reread. Raises `ConfigError` when the file
    cannot be read, holds no key, or has wrong lines; no message repeats a key."""

    def __init__(self, path: Path, *, settled: float = SETTLED, unfinished: float = UNFINISHED) -> None:
        self._path, self._settled, self._unfinished = path, settled, unfinished
        self._changed: tuple[_Version | None, float] = (None, 0.0)  # seen, and since when
        self._keys, self._version = _read(path)
        self.on_change: Callable[[], None] | None = None
        logger.info("%d API keys in %s", len(self._keys), path)

    def __repr__(self) -> str:
        return f"<KeyRing {self._path}: {', '.join(sorted(self.names))}>"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(key.name for key in self._keys)

    def find(self, presented: bytes) -> str | None:
        """The name of a key, None for an unknown one. Takes the same time for every wrong key: all digests
        are compared, each in constant time."""
        digest = sha256(presented).digest()
        found = None
        for name, known in self._keys:
            if compare_digest(known, digest):
                found = name
        return found

    async def watch(self, interval: float = 1.0) -> None:
        """Rereads a changed file, looking every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.refresh()

    async def refresh(self) -> None:
        """Reads the file if it has changed, in a thread: a file system that hangs must not hold up requests.
        A wrong file is logged once and the keys stay as they are: neither a slip of an editor nor a missing
        file may lock clients out, or let them in."""
        if (seen := await in_daemon_thread(self._look)) is None:
            return
        found, self._version = seen
        if isinstance(found, ConfigError):
            logger.error("keeping the previous API keys: %s", found)
            return
        self._keys = found
        logger.info("%d API keys in %s", len(self._keys), self._path)
        if self.on_change is not None:
            self.on_change()

    def _look(self) -> _Seen | None:
        """What the file holds, or what is wrong with it; None if it has not changed, or is being written.
        One that was renamed into its place is whole."""
        version, now = _version(self._path), time.monotonic()
        if version == self._version:
            return None
        if version != self._changed[0]:
            self._changed = version, now
        quiet = now - self._changed[1]
        renamed = self._version is not None and version is not None and version.was_renamed(self._version)
        if quiet < self._settled and not renamed:
            return None
        try:
            if quiet < self._unfinished and not renamed and not _ends_with_a_line(self._path):
                return None
            read = _read(self._path)
        except ConfigError as error:
            return error, version
        return read if read[1] == version else None  # else changed meanwhile


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of clients and of admins; None where the configuration names no file."""

    clients: KeyRing | None = None
    admins: KeyRing | None = None

    @classmethod
    def of(cls, access: Access) -> Self:
        """The keys that a configuration names. Raises `ConfigError` when a file cannot be used."""
        return cls(
            None if access.keys is None else KeyRing(access.keys),
            None if access.admin_keys is None else KeyRing(access.admin_keys),
        )

    @property
    def rings(self) -> list[KeyRing]:
        return [ring for ring in (self.clients, self.admins) if ring is not None]


def _read(path: Path) -> _Read:
    try:
        with os.fdopen(_open(path), encoding="utf-8-sig") as file:
            status = os.fstat(file.fileno())
            lines = file.read().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(
            Problem(f"the API key file is not UTF-8 text: {path}", hint="save it as UTF-8")
        ) from None
    except OSError as error:
        raise ConfigError(
            Problem(
                f"cannot read the API key file {path}: {error.strerror or error}",
                hint=f"create it with one `name: key` per line; {_HINT_KEY}"
                if isinstance(error, FileNotFoundError)
                else "it must be a regular file"
                if error.errno == errno.EINVAL
                else "make it readable by memoria's user only: chown, chmod 600",
            )
        ) from None
    _warn_if_public(path, status)
    return _parse(lines, path), _version_of(status)


def _open(path: Path) -> int:
    """Opens without waiting, as a pipe would. Raises `OSError` for what is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _parse(lines: list[str], path: Path) -> tuple[_Key, ...]:
    keys: dict[bytes, _Key] = {}
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        text, where = line.strip(), (f"{path}:{number}",)
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            hint = "names consist of letters, digits, `.`, `_` and `-`; keys have no spaces"
            problems.append(Problem("this line is not `name: key`", where, hint))
            continue
        digest = sha256(match["key"].encode()).digest()
        if len(match["key"]) < SHORTEST_KEY:
            what = f"the key of `{match['name']}` is shorter than {SHORTEST_KEY} characters"
            problems.append(Problem(what, where, _HINT_KEY))
        elif digest in keys:
            what = f"`{match['name']}` and `{keys[digest].name}` have the same key"
            problems.append(Problem(what, where, "give each name its own key"))
        else:
            keys[digest] = _Key(match["name"], digest)
    if not keys and not problems:
        problems.append(Problem(f"no API key in {path}", hint=f"add a line `name: key`; {_HINT_KEY}"))
    if problems:
        raise ConfigError(problems)
    return tuple(keys.values())


def _warn_if_public(path: Path, status: os.stat_result) -> None:
    """Warns of a file open to other users. One that another user owns (root, as systemd's credentials) may be
    read through its group."""
    given = status.st_uid != os.geteuid()
    others = stat.S_IRWXO | (stat.S_IWGRP if given else stat.S_IRWXG)
    if status.st_mode & others:
        logger.warning("the API key file is open to other users (chmod 600 %s)", path)


def _version(path: Path) -> _Version | None:
    try:
        return _version_of(path.stat())
    except OSError:
        return None


def _version_of(status: os.stat_result) -> _Version:
    return _Version(status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)


def _ends_with_a_line(path: Path) -> bool:
    """True also for a file that cannot be read: what is wrong with it is for `_read` to say."""
    try:
        with os.fdopen(_open(path), "rb") as file:
            return file.seek(0, os.SEEK_END) == 0 or (
                file.seek(-1, os.SEEK_END) >= 0 and file.read() == b"\n"
            )
    except OSError:
        return True
