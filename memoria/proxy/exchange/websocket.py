"""A WebSocket: admitted like any request, then bytes both ways until one side ends.

Sources: RFC 6455 4 (handshake). Frames are not inspected; vLLM pings, so the engine notices a client that is
gone.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import httptools

from memoria.proxy.admission.admission import Lease
from memoria.proxy.exchange.context import Failure, Standstill
from memoria.proxy.exchange.exchange import CONNECTING, OPEN, OVER, Exchange
from memoria.proxy.http.messages import Header, ResponseHead, read_response
from memoria.proxy.upstream import connect

_SWITCH = b"connection: Upgrade\r\nupgrade: websocket\r\n"
_HEAD_BYTES = 64 * 1024  # of the engine's answer
_EARLY_BYTES = 64 * 1024  # from a client before the engine's answer; more waits in its socket


class WebSocketExchange(Exchange):
    """Bytes in `upload` and the record: what passed after the handshake. A body has no place in it."""

    switches = True

    _engine_side: EngineSide | None = None
    _switched = False
    _early: bytes = b""

    # From the client

    def start(self) -> None:
        self.upload.complete = True
        super().start()

    def receive(self, piece: bytes) -> None:
        if self.state is OVER:
            return
        self.upload.size += len(piece)
        if self._engine_side is not None and self._switched:
            self._engine_side.write(piece)
            return
        self._early += piece
        if len(self._early) > _EARLY_BYTES:
            self._client.pause_reading()

    def receive_end(self) -> None:
        """A handshake has no body."""

    def pause_response(self) -> None:
        if self._engine_side is not None:
            self._engine_side.pause_reading()

    def resume_response(self) -> None:
        if self._engine_side is not None:
            self._engine_side.resume_reading()

    def on_tick(self, now: float) -> None:
        """Limits the engine's answer to the handshake and a client that takes nothing, as everywhere. Once
        open, a WebSocket may be silent for as long as its ends like."""
        self._still = self._still or Standstill()
        client = self._client
        unsent = client.transport.get_write_buffer_size() if client.blocked else 0
        opening = self._lease is not None and not self._switched
        lasts = self._still.lasts(now, (opening, unsent))
        if opening and lasts >= self._context.policy.timeouts.idle:
            self._fail(Failure.SILENT)
        elif unsent and lasts >= self._context.client_idle:
            self._fail(Failure.READER_STALLED)

    # To the engine

    def _relay(self, lease: Lease) -> None:
        self.state = CONNECTING
        self._tries += 1
        timeout = self._context.policy.timeouts.connect
        connecting = connect(partial(EngineSide, self), lease.address, timeout, self)
        self._connector = asyncio.get_running_loop().create_task(connecting)

    def on_connected(self, connection: EngineSide) -> None:
        self._connector = None
        self.state, self._engine_side = OPEN, connection
        before, after = self._head.to_engine
        connection.write(b"".join((before, self._id, after, _SWITCH, b"\r\n")))

    def _drop_upstream(self) -> None:
        super()._drop_upstream()
        if self._engine_side is not None:
            self._engine_side.abort()
            self._engine_side = None

    # From the engine

    def on_head(self, head: ResponseHead, length: int | None) -> None:
        """The engine agrees (101), or has its reasons; what follows is passed on as it comes."""
        self._head_at = time.monotonic()
        self._switched = True
        framing = _SWITCH if head.status == 101 else b"connection: close\r\n"
        if head.chunked:
            framing += b"transfer-encoding: chunked\r\n"
        elif length is not None:
            framing += b"content-length: %d\r\n" % length
        self.reply.switch(head, framing)
        early, self._early = self._early, b""
        if early and self._engine_side is not None:
            self._engine_side.write(early)
        self._client.resume_reading()

    def on_data(self, data: bytes) -> None:
        self._response_bytes += len(data)
        self._client.transport.write(data)

    def on_end(self) -> None:
        """The engine has closed."""
        if self.state is OVER:
            return
        if not self._switched:
            self._fail(Failure.LOST)
            return
        self.reply.complete = True
        self._drop_upstream()
        self._finish()
        self._client.on_answered()

    def on_garbled(self) -> None:
        self._fail(Failure.GARBLED)

    def on_engine_blocked(self) -> None:
        self._client.pause_reading()

    def on_engine_writable(self) -> None:
        self._client.resume_reading()


class EngineSide(asyncio.Protocol):
    """The connection to the engine: an HTTP head, then any bytes."""

    def __init__(self, exchange: WebSocketExchange) -> None:
        self._exchange: WebSocketExchange | None = exchange
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._headers: list[Header] = []
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        self._exchange = self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self._exchange, self._transport, self._parser = self._exchange, None, None, None
        if exchange is not None:
            exchange.on_end()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            return
        if self._parser is None:
            self._exchange.on_data(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if end:
            self._read(self._exchange, self._parser, head + end, rest)
        elif len(self._head) > _HEAD_BYTES:
            self._exchange.on_garbled()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.on_engine_blocked()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.on_engine_writable()

    def _read(
        self, exchange: WebSocketExchange, parser: httptools.HttpResponseParser, head: bytes, rest: bytes
    ) -> None:
        self._parser = None
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # as requested
        except httptools.HttpParserError:
            exchange.on_garbled()
            return
        try:
            answer, length = read_response(parser.get_status_code(), self._headers, keep_alive=False)
        except ValueError:
            exchange.on_garbled()
            return
        exchange.on_head(answer, length)
        if rest and self._exchange is not None:
            exchange.on_data(rest)

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
