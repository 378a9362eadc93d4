"""A client's transport, TCP or TLS: its flow, and the ways in which a connection ends."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from memoria.proxy.exchange.context import Watch, Watched
from memoria.proxy.upstream import unacknowledged

LINGER_S = 1.0  # for a client that still sends when its request was refused
BUFFER = 64 * 1024  # bytes; asyncio's for TCP. uvloop's for TLS are 512 KiB to be sent, 256 KiB to be read
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class ClientFlow(FlowControl):
    """uvicorn's flow control for one connection, which also notices that a client leaves while nothing is
    read from it: its socket is polled. Reading stops for a pipelined request, or a body that cannot be passed
    on yet; without this, the connection's end would show only when reading resumes.

    A TLS transport lies on a TCP transport that cannot be reached. It has no half-close, hands what it
    encrypts to the one below at once, and after `close` waits for the client's close_notify, which many
    clients never send. A close_notify that comes while nothing is read is noticed at the end of TCP."""

    def __init__(self, transport: asyncio.Transport, paused: Watch[Watched]) -> None:
        super().__init__(transport)
        self._paused = paused
        self._is_tls = not transport.can_write_eof()
        if self._is_tls:
            tls: Any = transport
            tls.set_write_buffer_limits(BUFFER)
            tls.set_read_buffer_limits(BUFFER)

    @property
    def unsent(self) -> int:
        """Bytes. With TLS, while they hold something up, also those that the client's kernel has not taken:
        what the transport has left is not all, and does not change while the one below is busy."""
        size = self._transport.get_write_buffer_size()
        if self._is_tls and (self.write_paused or self._transport.is_closing()):
            connection = self._transport.get_extra_info("socket")
            size += unacknowledged(connection) if connection is not None else 0
        return size

    def pause_reading(self) -> None:
        if not self.read_paused:
            super().pause_reading()
            self._paused.add(self)

    def resume_reading(self) -> None:
        if self.read_paused:
            super().resume_reading()
            self._paused.discard(self)

    def stop_watching(self) -> None:
        """The connection is over."""
        self._paused.discard(self)

    def on_tick(self, now: float) -> None:
        connection = self._transport.get_extra_info("socket")
        if connection is None:
            return  # it is over, and that will be said
        poll = select.poll()
        # POLLRDHUP: the client has ended, maybe with bytes before it that are still unread
        poll.register(connection, select.POLLRDHUP)
        for _, seen in poll.poll(0):
            if self._is_tls or seen & (select.POLLERR | select.POLLHUP):
                self._transport.abort()
            else:
                self._transport.close()

    def linger(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends the sending side, and lets the client read the answer: a close with unread bytes could take it
        away again."""
        self.resume_reading()
        if self._is_tls:
            loop.call_later(LINGER_S, self._transport.close)
            loop.call_later(1.1 * LINGER_S, self._transport.abort)
        else:
            self._transport.write_eof()
            loop.call_later(LINGER_S, self._transport.abort)

    def reset(self) -> None:
        """Ends the connection so that a part of an answer cannot pass for the whole."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()
