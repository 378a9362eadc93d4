"""Asking the running daemon, over its admin socket. Standard library only: it must answer at once."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from memoria.errors import NotRunningError, Problem, UnavailableError

PATIENCE = 10.0  # seconds
REFUSED = 422


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("memoria", timeout=patience)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(admin_socket: Path, path: str, *, method: str = "GET", patience: float = PATIENCE) -> Any:
    """The daemon's answer, decoded, also where it refuses (422). Raises `NotRunningError` or
    `UnavailableError`."""
    connection = _UnixConnection(admin_socket, patience)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        if response.status >= 400 and response.status != REFUSED:
            raise UnavailableError(f"memoria answered {response.status} to {path}")
        return json.loads(body)
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
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"memoria cannot be asked: {error}") from None
    finally:
        connection.close()
