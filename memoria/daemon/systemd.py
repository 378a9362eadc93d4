"""systemd: its sockets (`memoria.socket`, sd_listen_fds(3)), and the notifications to $NOTIFY_SOCKET
(sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def inherited_sockets(environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that LISTEN_FDS announces to this process."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    inherited = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        inherited.append(socket.socket(fileno=descriptor))
    return inherited


class Notifier:
    """Does nothing without NOTIFY_SOCKET. Never raises: losing systemd must not lose the engines."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_usec = environ.get("WATCHDOG_USEC", "") if _is_ours(environ) else ""
        self._status = ""

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two heartbeats: half of what systemd waits (sd_watchdog_enabled(3))."""
        return int(self._watchdog_usec) / 2e6 if self._watchdog_usec.isdigit() else None

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # a leading @ stands for the NUL of the abstract namespace
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto(message.encode(), address)
        except OSError as error:
            logger.warning("cannot notify systemd of %r: %s", message, error)


def _is_ours(environ: Mapping[str, str]) -> bool:
    return environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
