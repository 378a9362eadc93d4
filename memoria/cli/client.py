"""A client for the daemon's admin socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memoria import __version__
from memoria.demo import config_path as demo_config
from memoria.errors import (
    ConfigError,
    MemoriaError,
    NotRunningError,
    Problem,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from memoria.config.file import Place

PATIENCE = 10.0  # seconds; the daemon writes to its streams at least as often
REFUSED = 422  # a reload


def find_daemon(flag: Path | None) -> Place:
    """The daemon that a command talks to: that of the configuration found, or the demo's if only that one
    runs and `flag` is None. Does not validate the file. Raises `ConfigError` if there is none."""
    from memoria.config.file import find, locate

    try:
        place = locate(find(flag, os.environ, Path.cwd()), os.environ)
    except ConfigError:
        if flag is None and _is_up(demo := locate(demo_config(), os.environ)):
            return demo
        raise
    if flag is None and not _is_up(place) and _is_up(demo := locate(demo_config(), os.environ)):
        return demo
    return place


def _is_up(place: Place) -> bool:
    try:
        return place.admin_socket.exists()
    except PermissionError:  # another user's; connecting to it says so
        return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("memoria", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
        # unix(7): pid, uid and gid
        _, uid, _ = struct.unpack("3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        reject_stranger(uid, self._path)


def reject_stranger(uid: int, admin_socket: Path) -> None:
    """Rejects a server of another user's below a world-writable directory such as /tmp, where anyone can
    create the socket. Raises `UnavailableError`."""
    ours = uid in (0, os.geteuid())
    if not ours and any(folder.stat().st_mode & stat.S_IWOTH for folder in admin_socket.parents):
        raise UnavailableError(
            Problem(
                f"the server at {admin_socket} belongs to another user (uid {uid})",
                hint="run this command as that user, or remove the directory",
            )
        )


def request(admin_socket: Path, path: str, method: str = "GET", *, patience: float = PATIENCE) -> Any:
    """Returns the decoded answer, also that of a refused reload (422). Raises `NotRunningError`,
    `UnavailableError`, or `MemoriaError` if the daemon refuses the request or its answer is malformed."""
    with _answer(admin_socket, path, method, patience=patience) as answer, parsing(admin_socket):
        return json.loads(answer.read())


def events(admin_socket: Path, path: str) -> Iterator[tuple[str, Any]]:
    """Server-sent events as pairs of kind and data, until the daemon ends. Raises what `request` raises."""
    with _answer(admin_socket, path, "GET", patience=2 * PATIENCE) as answer:
        if answer.headers.get_content_type() != "text/event-stream":
            raise _unexpected_answer(admin_socket)
        kind = ""
        for line in answer:
            if line.startswith(b"event: "):
                kind = line[7:].decode(errors="replace").strip()
            elif line.startswith(b"data: "):
                with parsing(admin_socket):
                    data = json.loads(line[6:])
                yield kind, data


@contextmanager
def parsing(admin_socket: Path) -> Iterator[None]:
    """Wraps code that parses an answer: raises `MemoriaError` if its shape is not this version's."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unexpected_answer(admin_socket) from error


@contextmanager
def _answer(
    admin_socket: Path, path: str, method: str, *, patience: float
) -> Iterator[http.client.HTTPResponse]:
    connection = _UnixConnection(admin_socket, patience)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        if answer.status >= 400 and answer.status != REFUSED:
            raise _refusal(answer, admin_socket, path)
        yield answer
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NotRunningError(
            Problem("memoria is not running with this configuration", hint="start it with `memoria run`")
        ) from None
    except PermissionError:
        raise UnavailableError(
            Problem(f"may not open {admin_socket}", hint="run this command as the user that runs memoria")
        ) from None
    except TimeoutError:
        raise UnavailableError(f"no answer from memoria for {patience:g} s") from None
    except BrokenPipeError:
        raise  # standard output's: `memoria requests | head`
    except (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionResetError):
        raise UnavailableError("memoria ended before it answered") from None
    except http.client.HTTPException as error:
        raise _unexpected_answer() from error
    except OSError as error:
        raise UnavailableError(f"cannot connect to memoria: {error.strerror or error}") from None
    finally:
        connection.close()


def _refusal(answer: http.client.HTTPResponse, admin_socket: Path, path: str) -> MemoriaError:
    try:
        error = json.loads(answer.read())["error"]
        message, code = str(error["message"]), error["code"]
    except (ValueError, LookupError, TypeError):
        return UnavailableError(f"memoria answered {answer.status} to {path}")
    if code == "engine_not_found":
        what, _, hint = message.partition("; ")
        return UsageError(Problem(what, hint=hint or None))
    if code == "route_not_found":
        return _unexpected_answer(admin_socket)
    return MemoriaError(message) if answer.status < 500 else UnavailableError(message)


def _unexpected_answer(admin_socket: Path | None = None) -> MemoriaError:
    theirs = None if admin_socket is None else _version(admin_socket)
    if theirs in (None, __version__):
        what = "unexpected answer from memoria: it may be another version"
    else:
        what = f"the daemon is memoria {theirs}, this command is memoria {__version__}"
    return MemoriaError(Problem(what, hint="restart the daemon: `memoria run --take-over`, or its service"))


def _version(admin_socket: Path) -> str | None:
    """The daemon's version; None if unknown."""
    connection = _UnixConnection(admin_socket, PATIENCE)
    try:
        connection.request("GET", "/status")
        version = json.loads(connection.getresponse().read())["version"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
    finally:
        connection.close()
    return version if isinstance(version, str) and version.isprintable() else None
