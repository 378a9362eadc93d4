"""A WebSocket on its way through: admitted as any request, then bytes both ways until one side ends.

Sources: RFC 6455 4 (handshake). Its frames are not looked at; vLLM pings, so a client that is gone is noticed
by the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time

import httptools

from memoria.engine.address import UnixAddress
from memoria.proxy.access.rules import Grant
from memoria.proxy.downstream.watch import Standstill
from memoria.proxy.errors import Answer, Rejection
from memoria.proxy.exchange.client import Client
from memoria.proxy.exchange.passage import Passage
from memoria.proxy.exchange.record import CLIENT_GONE, RequestRecord
from memoria.proxy.exchange.relay import Failure, Relay
from memoria.proxy.exchange.reply import Reply
from memoria.proxy.exchange.upload import Upload
from memoria.proxy.http.headers import Header, new_request_id
from memoria.proxy.http.request import RequestHead
from memoria.proxy.http.response import read_response

logger = logging.getLogger(__name__)

_SWITCH = b"connection: Upgrade\r\nupgrade: websocket\r\n"
_HEAD_BYTES = 64 * 1024  # of the engine's answer
_EARLY_BYTES = 64 * 1024  # of a client that speaks before it was answered; more waits in its socket


class WebSocketExchange:
    """`response_complete` and `keep_alive` are read by uvicorn too, as those of its own requests."""

    keep_alive = False
    response_complete = False

    def __init__(self, relay: Relay, client: Client, head: RequestHead, grant: Grant) -> None:
        self._began = time.monotonic()
        self._relay, self._client, self._head, self._key = relay, client, head, grant.key
        self._id = head.own_id or new_request_id()
        self.upload = Upload(relay.policy.limits.body_bytes)
        self.upload.complete = True
        self.reply = Reply(client.transport, self._id, extra=grant.headers)
        self._passage = Passage(relay, head, self.upload, grant.key or client.peer)
        self._far: _FarEnd | None = None
        self._connector: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._switched_at: float | None = None
        self._sent = self._received = 0
        self._still = Standstill()

    # From the client

    def start(self) -> None:
        try:
            if self._passage.seek(self._client.port, self):
                self.on_place()
        except Rejection as rejection:
            self.refuse(rejection.answer)

    def receive(self, data: bytes) -> None:
        self._received += len(data)
        if self._far is not None and self._switched_at is not None:
            self._far.write(data)
            return
        self._early.append(data)
        if self._received > _EARLY_BYTES:
            self._client.pause_reading()

    def leave(self) -> None:
        """The client is gone."""
        if not self.response_complete:
            self._finish()

    def pause(self) -> None:
        if self._far is not None:
            self._far.pause_reading()

    def resume(self) -> None:
        if self._far is not None:
            self._far.resume_reading()

    def on_tick(self, now: float) -> None:
        """An engine that does not answer the handshake, and a client that takes nothing, as everywhere. A
        tunnel may be silent for as long as its ends like."""
        unsent = self._client.transport.get_write_buffer_size() if self._client.blocked else 0
        opening = self._switched_at is None and self._passage.place is not None
        lasts = self._still.lasts(now, (opening, unsent))
        if opening and lasts >= self._relay.policy.timeouts.idle:
            self._fail(Failure.SILENT)
        elif unsent and lasts >= self._relay.patience:
            self._fail(Failure.READER_STALLED)

    def cut(self, engine: str) -> None:
        """If it leads to this engine, it ends."""
        if self._passage.engine == engine and self._passage.place is not None:
            self._fail(Failure.CUT)

    def awaited(self, engine: str) -> None:
        """Nobody knows whose turn it is to speak."""

    # memoria.proxy.exchange.passage.Waiter

    def on_place(self) -> None:
        self._connector = asyncio.get_running_loop().create_task(self._connect())

    def refuse(self, answer: Answer) -> None:
        self.reply.answer(answer, keep_alive=False)
        self._finish()
        self._client.on_answered(self)

    # To the engine and back

    async def _connect(self) -> None:
        place = self._passage.place
        assert place is not None
        loop, address = asyncio.get_running_loop(), place.address
        try:
            async with asyncio.timeout(self._relay.policy.timeouts.connect):
                if isinstance(address, UnixAddress):
                    _, far = await loop.create_unix_connection(lambda: _FarEnd(self), address.path)
                else:
                    _, far = await loop.create_connection(lambda: _FarEnd(self), address.host, address.port)
        except OSError:
            self._fail(Failure.UNREACHABLE)
            return
        self._far = far
        before, after = self._head.to_engine
        far.write(b"".join((before, self._id, after, _SWITCH, b"\r\n")))

    def on_head(self, status: int, headers: list[Header]) -> None:
        """The engine agrees (101), or has its reasons; what follows is passed on as it comes."""
        try:
            head, length = read_response(status, headers, keep_alive=False)
        except ValueError:
            self.on_garbled()
            return
        self._switched_at = time.monotonic()
        switch = _SWITCH if status == 101 else b"connection: close\r\n"
        if head.chunked:
            switch += b"transfer-encoding: chunked\r\n"
        elif length is not None:
            switch += b"content-length: %d\r\n" % length
        self.reply.status = status
        self._client.transport.write(
            b"".join((head.fields, switch, b"x-request-id: ", self._id, b"\r\n\r\n"))
        )
        early, self._early = b"".join(self._early), []
        if early and self._far is not None:
            self._far.write(early)
        self._client.resume_reading()

    def on_data(self, data: bytes) -> None:
        self._sent += len(data)
        self._client.transport.write(data)

    def on_end(self) -> None:
        """The engine has closed."""
        if self.response_complete:
            return
        if self._switched_at is None:
            self._fail(Failure.LOST)
            return
        self.reply.complete = True
        self._finish()
        self._client.on_answered(self)

    def on_garbled(self) -> None:
        self._fail(Failure.GARBLED)

    def on_far_blocked(self) -> None:
        self._client.pause_reading()

    def on_far_writable(self) -> None:
        self._client.resume_reading()

    # The end

    def _fail(self, failure: Failure) -> None:
        engine = self._passage.engine or ""
        logger.warning("%s: %s (request %s)", engine, failure, self._id.decode())
        if self.reply.status is None:
            self.refuse(self._relay.explain(failure, engine))
        else:
            self._finish()
            self._client.on_cut(self)

    def _finish(self) -> None:
        self.response_complete = True
        if self._connector is not None:
            self._connector.cancel()
        if self._far is not None:
            self._far.abort()
        self._passage.leave()
        if self._relay.on_done is not None:
            self._relay.on_done(self._exchange())

    def _exchange(self) -> RequestRecord:
        switched, route = self._switched_at, self._head.route
        return RequestRecord(
            self._id.decode(),
            self._passage.engine,
            route.path if route is not None else None,
            self.reply.status or CLIENT_GONE,
            self._sent,
            None if switched is None else switched - self._began,
            time.monotonic() - self._began,
            self.reply.complete,
            0,
            self._head.method.decode(),
            self._key,
            self._client.peer,
            self._received,
            traceparent=self._head.traceparent,
        )


class _FarEnd(asyncio.Protocol):
    """The connection to the engine: an HTTP head, then whatever comes."""

    def __init__(self, tunnel: WebSocketExchange) -> None:
        self._tunnel: WebSocketExchange | None = tunnel
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
        self._tunnel = self._parser = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        tunnel, self._tunnel, self._transport, self._parser = self._tunnel, None, None, None
        if tunnel is not None:
            tunnel.on_end()

    def data_received(self, data: bytes) -> None:
        if self._tunnel is None:
            return
        if self._parser is None:
            self._tunnel.on_data(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if end:
            self._read(self._tunnel, self._parser, head + end, rest)
        elif len(self._head) > _HEAD_BYTES:
            self._tunnel.on_garbled()

    def pause_writing(self) -> None:
        if self._tunnel is not None:
            self._tunnel.on_far_blocked()

    def resume_writing(self) -> None:
        if self._tunnel is not None:
            self._tunnel.on_far_writable()

    def _read(
        self, tunnel: WebSocketExchange, parser: httptools.HttpResponseParser, head: bytes, rest: bytes
    ) -> None:
        self._parser = None
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # that is what was asked for
        except httptools.HttpParserError:
            tunnel.on_garbled()
            return
        tunnel.on_head(parser.get_status_code(), self._headers)
        if rest and self._tunnel is not None:
            tunnel.on_data(rest)

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
