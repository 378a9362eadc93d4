"""Listening sockets that come from somebody else, so that no connection is refused while one daemon ends and
the next begins: from systemd (`memoria.socket`), or from the daemon that ran before (`run --take-over`).

Connections that come meanwhile wait in the kernel's queue (`listen.BACKLOG` of them). Engines are no part of
it: they die with their daemon and are started anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from memoria.daemon.listeners import bind_admin
from memoria.errors import NotRunningError, Problem, UnavailableError

logger = logging.getLogger(__name__)

FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
MOST = 250  # descriptors in one message: SCM_MAX_FD is 253 (unix(7))
PATIENCE = 10.0  # seconds
AGAIN = 0.2  # seconds until the next one is listened to after a failure


def from_systemd(environ: Mapping[str, str]) -> list[socket.socket]:
    """What LISTEN_FDS announces to this very process."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    given = []
    for descriptor in range(FIRST, FIRST + int(count)):
        os.set_inheritable(descriptor, False)
        given.append(socket.socket(fileno=descriptor))
    return given


def take_over(path: Path) -> list[socket.socket]:
    """The sockets of the daemon that listens on `path`, which then drains and ends. Raises `NotRunningError`
    or `UnavailableError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
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
        raise UnavailableError("the daemon that runs has handed no socket over")
    return taken


class Handover:
    """The giving end: whoever may open `path` (its owner alone) gets the `sockets`; `on_taken` is called once
    they have arrived."""

    def __init__(
        self, path: Path, sockets: Callable[[], list[socket.socket]], on_taken: Callable[[], None]
    ) -> None:
        self._listener = bind_admin(path)
        self._listener.setblocking(False)
        self._sockets, self._on_taken = sockets, on_taken

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
                with connection:
                    await self._hand_over(connection)
            except OSError as error:  # for want of a descriptor, say
                logger.warning("the sockets were not handed over: %r", error)
                await asyncio.sleep(AGAIN)

    def close(self) -> None:
        self._listener.close()

    async def _hand_over(self, connection: socket.socket) -> None:
        descriptors = [listener.fileno() for listener in self._sockets()][:MOST]
        socket.send_fds(connection, [b"."], descriptors)
        connection.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            if await asyncio.get_running_loop().sock_recv(connection, 1):
                self._on_taken()
