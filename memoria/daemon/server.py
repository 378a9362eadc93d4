"""uvicorn with sockets that come and go while it serves, and without signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.daemon.tls import ServerContext
from memoria.proxy.downstream.connection import HANDSHAKE_S, READER_S

KEEP_ALIVE = 75  # seconds an idle client connection stays open, nginx's default


class Server(uvicorn.Server):
    def __init__(
        self,
        app: ASGIApp,
        protocol: type[HttpToolsProtocol],
        listeners: Sequence[socket.socket],
        tls: ServerContext,
    ) -> None:
        """Unix sockets have no TLS, others while `tls` has a certificate."""
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
        self._listeners, self._tls = listeners, tls
        self._opened: dict[socket.socket, asyncio.Server] = {}
        self._accepting: dict[socket.socket, asyncio.Server] = {}
        self._ended = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listener in self._listeners:
            await self.open(listener, tls=self._tls.certificate is not None)
            await self.accept(listener)

    async def open(self, listener: socket.socket, *, tls: bool) -> None:
        """Prepares to serve a listening socket: another one, or one that is served already, in another way
        than before. Raises `OSError`."""
        secure = tls and listener.family != socket.AF_UNIX
        server = await asyncio.get_running_loop().create_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            sock=listener.dup(),  # the server closes its own; the caller's stays to be handed over
            backlog=self.config.backlog,
            ssl=self._tls if secure else None,
            ssl_handshake_timeout=HANDSHAKE_S if secure else None,
            ssl_shutdown_timeout=READER_S if secure else None,
            start_serving=False,
        )
        self._opened[listener] = server
        self.servers.append(server)

    async def accept(self, listener: socket.socket) -> None:
        """Accepts connections there from now on, as it was opened last."""
        self._close(self._accepting.pop(listener, None))
        self._accepting[listener] = server = self._opened.pop(listener)
        await server.start_serving()

    def drop(self, listener: socket.socket) -> None:
        """What `open` prepared is not to be."""
        self._close(self._opened.pop(listener, None))

    def ignore(self, listener: socket.socket) -> None:
        """Accepts no more connections there; open ones stay."""
        self._close(self._accepting.pop(listener, None))

    def _close(self, server: asyncio.Server | None) -> None:
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
