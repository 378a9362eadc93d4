"""One connection to an engine: an `asyncio.Protocol` on httptools' parser.

It reads one response at a time and hands on every piece of it inside the callback that brought it: no task
wakes up between an engine's bytes and the client's socket. Where nothing is to be found nothing is parsed:
in a head that came before, and in a body whose length is known.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import httptools

from memoria.engine.address import EngineAddress
from memoria.proxy.downstream.head_cache import HeadCache
from memoria.proxy.http.chunks import BY_LENGTH, END, LONGEST
from memoria.proxy.http.headers import Header
from memoria.proxy.http.response import ResponseHead, read_response

_USUAL = b"HTTP/1.1 200 "  # heads that are worth to be known again


class Sink(Protocol):
    """What takes a response's body, a piece at a time and none that is empty."""

    def send(self, piece: bytes) -> None: ...

    def send_chunk(self, framed: bytes) -> None:
        """A piece that is framed still, as one chunk without extensions."""


class Listener(Protocol):
    """Whoever waits for a response. Called from the event loop's callbacks; must not block."""

    def on_head(self, upstream: Upstream) -> Sink:
        """The head is here (1xx heads are passed over). Returns what takes the body."""

    def on_waiting(self) -> None:
        """With the head of a body whose length is not known came no more than what was handed on: its next
        piece may take long. That of another is written by the engine right after the head, and may leave with
        it."""

    def on_end(self, upstream: Upstream) -> None:
        """The response is complete."""

    def on_lost(self, upstream: Upstream) -> None:
        """The response will not be completed: the connection is gone, or `upstream.garbled`."""

    def on_writable(self) -> None:
        """The engine has taken most of what was written."""


class Upstream(asyncio.Protocol):
    """From `on_head` on: `head` and `length` (of the body, None where the engine does not tell it).
    `received` counts the body's bytes, `reads` the times that something came, `pauses` those that nothing was
    read for a while. `idle` is where the connection
    waits between requests, with the others to its address.

    `unread`, with `on_lost`: the engine cannot have read all that was written. Sources: RFC 1122 4.2.2.13 and
    unix(7): who closes with unread bytes sends a reset instead of an end, and who writes to what is closed
    gets one back. A process that dies leaves the same."""

    head: ResponseHead | None = None
    length: int | None = None
    garbled = False
    unread = False
    write_paused = False
    read_paused = False
    pauses = 0
    idle_since = 0.0  # loop time
    listener: Listener | None = None
    _transport: asyncio.Transport | None = None
    _parser: httptools.HttpResponseParser | None = None
    _repeat: HeadCache[ResponseHead] | None = None  # the latest head that can be known again
    _sink: Sink | None = None
    _left = 0  # bytes of a body that are not parsed but counted
    _between_chunks = False  # of a body, by what was parsed
    _send_chunk: Callable[[bytes], None] | None = None  # what takes the next read, should it be one chunk
    _headers: list[Header]
    _notable = False  # the read brought more than a piece of the body

    def __init__(self, address: EngineAddress, idle: list[Upstream]) -> None:
        self.address = address
        self._idle = idle
        self.reads = self.received = 0
        self.complete = False

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "idle" if self.listener is None else "busy"
        return f"<Upstream {self.address} {state}>"

    # To the engine

    def begin(self, listener: Listener) -> None:
        """The next response is the listener's."""
        self.listener = listener
        self.reads = self.received = 0
        self.complete = False
        self.head = None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        self.read_paused = True
        self.pauses += 1
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self.read_paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # The end

    @property
    def reusable(self) -> bool:
        """The response is complete and the engine keeps the connection open."""
        head = self.head
        return (
            self.complete
            and head is not None
            and head.keep_alive
            and not self.garbled
            and self._transport is not None
        )

    def rest(self, now: float) -> None:
        """Waits for its next request."""
        self.listener = self._sink = self._send_chunk = None
        if self.read_paused:  # with the last piece, for a client that had not taken it yet
            self.resume_reading()
        self.idle_since = now
        self._idle.append(self)

    def abort(self) -> None:
        """Closes at once, which makes vLLM abort the request."""
        self.listener = self._sink = self._send_chunk = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._send_chunk is not None and len(data) <= LONGEST:
            line, size = BY_LENGTH[len(data)]
            if size and data.startswith(line) and data.endswith(END):
                self.reads += 1
                self.received += size
                self._send_chunk(data)
                return
        listener = self.listener
        if listener is None:
            self._leave_pool()
            self.abort()  # nothing was asked
            return
        self.reads += 1
        if self._left:
            self._count(data, listener)
            return
        if self.reads == 1 and self._repeat is not None:
            found = self._repeat.match(data)
            if found is not None:
                self._recognise(self._repeat.meaning, *found, data, listener)
                return
        self._parse(data, listener)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.listener is not None:
            self.listener.on_writable()

    def eof_received(self) -> None:
        """What was not written, and what the engine's kernel had not acknowledged with the end, was not read.
        A reset that came with the end shows only at the socket, too."""
        transport = self._transport
        if self.listener is None:
            self._leave_pool()
        elif transport is not None:
            end = transport.get_extra_info("socket")
            failed = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.unread = failed != 0 or transport.get_write_buffer_size() > 0 or _unacknowledged(end) > 0

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.unread = self.unread or isinstance(error, ConnectionResetError | BrokenPipeError)
        self._parser = None  # it refers back here
        self._leave_pool()
        listener, self.listener = self.listener, None
        self._sink = self._send_chunk = None
        if listener is None:
            return
        if error is None and not self.complete and self._ends_with_connection:
            self.complete = True
            listener.on_end(self)
        else:
            listener.on_lost(self)

    def _leave_pool(self) -> None:
        """At once: the loop tells of a connection's loss a turn later, and until then it could be taken."""
        with suppress(ValueError):
            self._idle.remove(self)

    @property
    def _ends_with_connection(self) -> bool:
        head = self.head
        return head is not None and not head.chunked and self.length is None and not head.bodiless

    # Without the parser

    def _recognise(
        self, head: ResponseHead, length: int, start: int, data: bytes, listener: Listener
    ) -> None:
        """The head is one that came before; its body begins in `data` at `start`."""
        self.head, self.length = head, length
        self._sink = listener.on_head(self)
        self._left = length
        if start < len(data) or not length:
            self._count(data[start:], listener)

    def _count(self, data: bytes, listener: Listener) -> None:
        """A piece of a body whose length is known."""
        if len(data) > self._left:
            self.garbled = True  # more than was announced
            data = data[: self._left]
        self._left -= len(data)
        self.received += len(data)
        if data:
            assert self._sink is not None
            self._sink.send(data)
        if not self._left:
            self.complete = True
            listener.on_end(self)

    # With it

    def _parse(self, data: bytes, listener: Listener) -> None:
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        first = self.reads == 1
        if first:
            self._headers = []
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # an error of memoria's own
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.garbled = self._notable = True
        # Of a size line that is not all here the parser does not tell
        between = self._between_chunks and data.endswith(END)
        self._send_chunk = self._sink.send_chunk if between and self._sink is not None else None
        if first and self.head is not None and not self.garbled and data.startswith(_USUAL):
            self._repeat = HeadCache.of(data, self.head)
        if self._notable:
            self._notable = False
            self._attend(listener)

    def _attend(self, listener: Listener) -> None:
        """After a read that brought more than a piece of the body."""
        if self.complete:
            listener.on_end(self)
        elif self.garbled:
            self.abort()
            listener.on_lost(self)
        elif self.length is None:
            listener.on_waiting()
        else:
            self._left = self.length - self.received
            self._parser = None

    def on_message_begin(self) -> None:
        if self.complete:
            self.garbled = self._notable = True  # a second response: its bytes are nobody's

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete or self._parser is None or self.listener is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
            return
        self._notable = True
        # Asked later, after the message's end, the parser always says no
        keep_alive = self._parser.should_keep_alive()
        try:
            head, self.length = read_response(status, self._headers, keep_alive=keep_alive)
        except ValueError:
            self.garbled = True
            return
        self.head = head
        self._sink = self.listener.on_head(self)
        self._between_chunks = head.chunked

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_body(self, body: bytes) -> None:
        if self._sink is not None and not self.complete:
            self.received += len(body)
            self._sink.send(body)

    def on_message_complete(self) -> None:
        self._between_chunks = False
        if self.head is not None:
            self.complete = self._notable = True


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes (SIOCOUTQ of tcp(7), which has the number of TIOCOUTQ)."""
    (queued,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(queued)
