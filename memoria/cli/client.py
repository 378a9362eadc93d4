"""Asking the running daemon, over its admin socket. Standard library only: it must answer at once."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memoria.errors import MemoriaError, NotRunningError, Problem, UnavailableError

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


def ask(admin_socket: Path, path: str, method: str = "GET", *, patience: float = PATIENCE) -> Any:
    """The daemon's answer, decoded, also where it refuses a reload (422). Raises `NotRunningError`,
    `UnavailableError`, or `MemoriaError` with what the daemon has against it."""
    with _answer(admin_socket, path, method, patience=patience) as answer:
        return json.loads(answer.read())


def events(admin_socket: Path, path: str) -> Iterator[tuple[str, Any]]:
    """The server-sent events at `path` as kind and data, until the daemon ends. Raises as `ask`."""
    with _answer(admin_socket, path, "GET", patience=2 * PATIENCE) as answer:
        kind = ""
        for line in answer:
            if line.startswith(b"event: "):
                kind = line[7:].decode().strip()
            elif line.startswith(b"data: "):
                yield kind, json.loads(line[6:])


@contextmanager
def _answer(
    admin_socket: Path, path: str, method: str, *, patience: float
) -> Iterator[http.client.HTTPResponse]:
    connection = _UnixConnection(admin_socket, patience)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        if answer.status >= 400 and answer.status != REFUSED:
            raise _refusal(answer, path)
        yield answer
    except (FileNotFoundError, ConnectionRefusedError):
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
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"memoria cannot be asked: {error}") from None
    finally:
        connection.close()


def _refusal(answer: http.client.HTTPResponse, path: str) -> MemoriaError:
    try:
        message = json.loads(answer.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return UnavailableError(f"memoria answered {answer.status} to {path}")
    return MemoriaError(message) if answer.status < 500 else UnavailableError(message)
