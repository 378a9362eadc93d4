"""The other end of sd_notify(3): what a daemon tells systemd."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from tests.integration.daemon import PATIENCE


class NotifySocket:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE)
        self._socket.bind(str(self.path))

    def until(self, wanted: str, *, times: int = 1) -> None:
        while self.messages.count(wanted) < times:
            self.messages.append(self._socket.recv(4096).decode())

    def until_silent(self, seconds: float) -> None:
        """Waits until no message has come for so long."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                self.messages.append(self._socket.recv(4096).decode())
        self._socket.settimeout(PATIENCE)

    def drain(self) -> list[str]:
        """All that has come; for when nobody sends any more."""
        self._socket.settimeout(0)
        try:
            while True:
                self.messages.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self.messages

    def close(self) -> None:
        self._socket.close()
