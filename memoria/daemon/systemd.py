"""Telling systemd how the daemon does: the sd_notify(3) protocol, datagrams to $NOTIFY_SOCKET."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Notifier:
    """Does nothing where no NOTIFY_SOCKET is set. Never raises: losing systemd must not lose the engines."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_usec = environ.get("WATCHDOG_USEC", "") if _is_ours(environ) else ""
        self._status = ""

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two signs of life: half of what systemd waits (sd_watchdog_enabled(3))."""
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
            logger.warning("systemd could not be told %r: %s", message, error)


def _is_ours(environ: Mapping[str, str]) -> bool:
    return environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
