"""uvicorn with sockets that come and go while it serves, and without signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
                proxy_headers=False,  # no client is trusted about its address
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self._listeners = listeners
        self._accepting: dict[socket.socket, asyncio.Server] = {}
        self._ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listener in self._listeners:
            await self.open(listener)
            await self.accept(listener)

    async def open(self, listener: socket.socket) -> None:
        """Prepares to serve another listening socket. Raises `OSError`."""
        server = await asyncio.get_running_loop().create_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            sock=listener.dup(),  # the server closes its own; the caller's stays to be handed over
            backlog=self.config.backlog,
            start_serving=False,
        )
        self._accepting[listener] = server
        self.servers.append(server)

    async def accept(self, listener: socket.socket) -> None:
        """Accepts connections there from now on."""
        await self._accepting[listener].start_serving()

    def ignore(self, listener: socket.socket) -> None:
        """Accepts no more connections there; open ones stay."""
        server = self._accepting.pop(listener, None)
        if server is not None:
            self.servers.remove(server)
            server.close()

    def end(self, *, drain: float) -> None:
        """Ends it; requests in flight may finish within `drain` seconds."""
        self.config.timeout_graceful_shutdown = int(drain) + 1
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Replaces uvicorn's, which wakes ten times a second to check for the end and to format a date."""
        await self._ended.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them to the daemon; uvicorn's handlers would end the proxy before the engines drain."""
        yield
