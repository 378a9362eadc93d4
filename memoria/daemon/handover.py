"""Listening sockets passed from one daemon to the next (`run --take-over`), so that no connection is refused.

Connections that arrive meanwhile wait in the kernel's queue (`listeners.BACKLOG` of them). Engines are not
passed on: they end with their daemon and are started anew.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from memoria.daemon.listeners import bind_admin
from memoria.errors import NotRunningError, Problem, UnavailableError

logger = logging.getLogger(__name__)

MOST = 250  # descriptors in one message: SCM_MAX_FD is 253 (unix(7))
TIMEOUT = 10.0  # seconds
RETRY_AFTER = 0.2  # seconds between a failure and the next accept


def take_over(path: Path) -> list[socket.socket]:
    """The sockets of the daemon behind `path`, which then drains and ends. Raises `NotRunningError` or
    `UnavailableError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
            _, descriptors, _, _ = socket.recv_fds(connection, 1, MOST)
            taken = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            connection.sendall(b".")
        except (FileNotFoundError, ConnectionRefusedError):
            hint = "start it without --take-over"
            raise NotRunningError(
                Problem("memoria is not running with this configuration", hint=hint)
            ) from None
        except OSError as error:
            raise UnavailableError(f"the sockets were not handed over: {error.strerror or error}") from None
    if not taken:
        raise UnavailableError("the running daemon handed no socket over")
    return taken


class Handover:
    """The giving end: a process that may open `path` (its owner's alone) gets the `sockets`; `on_taken` is
    called once they have arrived."""

    def __init__(
        self, path: Path, sockets: Callable[[], list[socket.socket]], on_taken: Callable[[], None]
    ) -> None:
        self._listener = bind_admin(path)
        self._listener.setblocking(False)
        self._sockets, self._on_taken = sockets, on_taken

    async def run(self) -> None:
        """Runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
                with connection:
                    await self._hand_over(connection)
            except OSError as error:  # out of descriptors, for example
                logger.warning("the sockets were not handed over: %r", error)
                await asyncio.sleep(RETRY_AFTER)

    def close(self) -> None:
        self._listener.close()

    async def _hand_over(self, connection: socket.socket) -> None:
        descriptors = [listener.fileno() for listener in self._sockets()][:MOST]
        socket.send_fds(connection, [b"."], descriptors)
        connection.setblocking(False)
        async with asyncio.timeout(TIMEOUT):
            if await asyncio.get_running_loop().sock_recv(connection, 1):
                self._on_taken()
