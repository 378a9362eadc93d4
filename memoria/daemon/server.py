"""uvicorn, as the daemon uses it: sockets come and go while it serves, and signals are not its business."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.daemon.listeners import spread

KEEP_ALIVE = 75  # seconds an idle client connection stays open, nginx's default


class Server(uvicorn.Server):
    def __init__(
        self, app: ASGIApp, protocol: type[HttpToolsProtocol], listeners: Sequence[socket.socket]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                loop="uvloop",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,  # the engine's is relayed
                proxy_headers=False,  # no client is trusted to say who it is
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self._listeners = listeners
        self._accepting: dict[socket.socket, list[asyncio.Server]] = {}
        self._ended = asyncio.Event()

    def set_drain(self, seconds: float) -> None:
        """How long requests in flight have when it ends."""
        self.config.timeout_graceful_shutdown = int(seconds) + 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listener in self._listeners:
            await self.open(listener)
            await self.accept(listener)

    async def open(self, listener: socket.socket) -> None:
        """Gets ready to serve the connections of one more listening socket. Raises `OSError`; `ignore` then
        gives back what there is."""
        accepting = self._accepting[listener] = []
        for descriptor in spread(listener):
            server = await asyncio.get_running_loop().create_server(
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state
                ),
                sock=descriptor,
                backlog=self.config.backlog,
                start_serving=False,
            )
            accepting.append(server)
            self.servers.append(server)

    async def accept(self, listener: socket.socket) -> None:
        """From now on connections are accepted there."""
        for server in self._accepting[listener]:
            await server.start_serving()

    def ignore(self, listener: socket.socket) -> None:
        """Accepts no more connections there; those that are open stay."""
        for server in self._accepting.pop(listener, ()):
            self.servers.remove(server)
            server.close()

    def end(self) -> None:
        """What is in flight may finish, within the drain."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """uvicorn's own looks ten times a second whether to end, and what the date is, which nobody asks."""
        await self._ended.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The daemon handles them; uvicorn's own handlers would end the proxy before the engines drain."""
        yield
