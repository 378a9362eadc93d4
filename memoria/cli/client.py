"""Asking the running daemon, over its admin socket. Standard library only: it must answer at once."""

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
from typing import Any

from memoria import __version__
from memoria.errors import MemoriaError, NotRunningError, Problem, UnavailableError, UsageError

PATIENCE = 10.0  # seconds; on streams the daemon is heard of at least as often
REFUSED = 422


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
    """Whoever answers there as `uid`: where everybody may make folders, as in /tmp, it is no daemon of this
    user's. Raises `UnavailableError`."""
    ours = uid in (0, os.geteuid())
    if not ours and any(place.stat().st_mode & stat.S_IWOTH for place in admin_socket.parents):
        raise UnavailableError(
            Problem(
                f"what answers at {admin_socket} belongs to another user (uid {uid})",
                hint="run this command as that user, or remove the folder",
            )
        )


def ask(admin_socket: Path, path: str, method: str = "GET", *, patience: float = PATIENCE) -> Any:
    """The daemon's answer, decoded, also where it refuses a reload (422). Raises `NotRunningError`,
    `UnavailableError`, or `MemoriaError` with what the daemon has against it, or where it is not
    understood."""
    with _answer(admin_socket, path, method, patience=patience) as answer, understood(admin_socket):
        return json.loads(answer.read())


def events(admin_socket: Path, path: str) -> Iterator[tuple[str, Any]]:
    """The server-sent events at `path` as kind and data, until the daemon ends. Raises as `ask`."""
    with _answer(admin_socket, path, "GET", patience=2 * PATIENCE) as answer:
        if answer.headers.get_content_type() != "text/event-stream":
            raise _not_understood(admin_socket)
        kind = ""
        for line in answer:
            if line.startswith(b"event: "):
                kind = line[7:].decode(errors="replace").strip()
            elif line.startswith(b"data: "):
                with understood(admin_socket):
                    data = json.loads(line[6:])
                yield kind, data


@contextmanager
def understood(admin_socket: Path) -> Iterator[None]:
    """Around what is made of an answer: raises `MemoriaError` where its shape is not this version's."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _not_understood(admin_socket) from error


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
        raise UnavailableError(f"memoria has not answered for {patience:g} s") from None
    except BrokenPipeError:
        raise  # of standard output: `memoria requests | head`
    except (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionResetError):
        raise UnavailableError("memoria ended before it had answered") from None
    except http.client.HTTPException as error:
        raise _not_understood() from error
    except OSError as error:
        raise UnavailableError(f"memoria cannot be asked: {error.strerror or error}") from None
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
        return _not_understood(admin_socket)
    return MemoriaError(message) if answer.status < 500 else UnavailableError(message)


def _not_understood(admin_socket: Path | None = None) -> MemoriaError:
    theirs = None if admin_socket is None else _version(admin_socket)
    if theirs in (None, __version__):
        what = "what answers for memoria is not understood: it may be another version"
    else:
        what = f"the daemon is memoria {theirs}, this command is of {__version__}"
    return MemoriaError(Problem(what, hint="restart the daemon: `memoria run --take-over`, or its service"))


def _version(admin_socket: Path) -> str | None:
    """None where the daemon does not tell."""
    connection = _UnixConnection(admin_socket, PATIENCE)
    try:
        connection.request("GET", "/status")
        version = json.loads(connection.getresponse().read())["version"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
    finally:
        connection.close()
    return version if isinstance(version, str) and version.isprintable() else None
