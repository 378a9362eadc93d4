"""One connection to an engine: an `asyncio.Protocol` on httptools' parser.

It reads one response at a time and hands on every piece of it inside the callback that brought it: no task
wakes up between an engine's bytes and the client's socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import httptools

from memoria.engine.address import EngineAddress
from memoria.proxy.headers import NOT_FOR_CLIENTS, Header, without

Sink = Callable[[bytes], None]


class Listener(Protocol):
    """Whoever waits for a response. Called from the event loop's callbacks; must not block."""

    def on_head(self, upstream: Upstream) -> Sink:
        """The head is here (1xx heads are passed over). Returns what takes the pieces of the body."""

    def on_waiting(self) -> None:
        """With the head came no more than what was handed on."""

    def on_end(self, upstream: Upstream) -> None:
        """The response is complete."""

    def on_lost(self, upstream: Upstream) -> None:
        """The response will not be completed: the connection is gone, or `upstream.garbled`."""

    def on_writable(self) -> None:
        """The engine has taken most of what was written."""


class Upstream(asyncio.Protocol):
    """From `on_head` on: `status`, `lines` (the header fields for the client, as name, colon, value and end
    of line each, but for the body's framing) and `length` (of the body, where the engine tells it).
    `received` counts the body's bytes, `reads` the times that something came. `idle` is where the connection
    waits between requests, with the others to its address."""

    status: int
    lines: list[bytes]
    length: int | None
    _special: list[Header]
    _notable: bool  # the read brought more than a piece of the body
    _head_complete: bool
    garbled = False
    reused = False
    write_paused = False
    idle_since = 0.0  # loop time
    listener: Listener | None = None
    _transport: asyncio.Transport | None = None
    _sink: Sink

    def __init__(self, address: EngineAddress, idle: list[Upstream]) -> None:
        self.address = address
        self._idle = idle
        self.reads = self.received = 0
        self.complete = False
        self._parser: httptools.HttpResponseParser | None = None
        self._keep_alive = False
        self._closed_by_end = False
        self._left = 0  # bytes of a long body that are not parsed but counted

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "idle" if self.listener is None else "busy"
        return f"<Upstream {self.address} {state}>"

    # To the engine

    def begin(self, listener: Listener) -> None:
        """The next response is the listener's."""
        self.listener = listener
        self.reads = self.received = 0
        self.complete = self._notable = self._head_complete = self._closed_by_end = False
        self.lines = []
        self._special = []
        self._sink = _ignore
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # The end

    @property
    def reusable(self) -> bool:
        """The response is complete and the engine keeps the connection open."""
        return self.complete and self._keep_alive and not self.garbled and self._transport is not None

    def rest(self, now: float) -> None:
        """Waits for its next request."""
        self.listener = None
        self.reused = True
        self.idle_since = now
        self._idle.append(self)

    def abort(self) -> None:
        """Closes at once, which makes vLLM abort the request."""
        self.listener = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.listener is None:
            self.abort()  # nothing was asked
            return
        self.reads += 1
        if self._parser is None:
            self._count(data, self.listener)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # an error of memoria's own
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.garbled = self._notable = True
        if self._notable:
            self._attend(self.listener)

    def _attend(self, listener: Listener) -> None:
        """After a read that brought more than a piece of the body."""
        self._notable = False
        if self.complete:
            listener.on_end(self)
        elif self.garbled:
            self.abort()
            listener.on_lost(self)
        else:
            listener.on_waiting()
            if self.length is not None:
                self._left = self.length - self.received
                self._parser = None

    def _count(self, data: bytes, listener: Listener) -> None:
        """A piece of a body whose length is known: there is nothing to parse in it."""
        if len(data) > self._left:
            self.garbled = True  # more than was announced
            data = data[: self._left]
        self._left -= len(data)
        self.received += len(data)
        self._sink(data)
        if not self._left:
            self.complete = True
            listener.on_end(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.listener is not None:
            self.listener.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._parser = None  # it refers back here
        with suppress(ValueError):
            self._idle.remove(self)
        listener, self.listener = self.listener, None
        if listener is None:
            return
        if self._closed_by_end and error is None and not self.complete:
            self.complete = True
            listener.on_end(self)
        else:
            listener.on_lost(self)

    # httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self.garbled = self._notable = True  # a second response: its bytes are nobody's

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in NOT_FOR_CLIENTS:
            self._special.append((name, value))
        elif not self._head_complete:  # else a trailer
            self.lines += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        if self.complete or self._parser is None or self.listener is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.lines.clear()
            self._special.clear()
            return
        length = None
        codings = []
        for name, value in self._special:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"connection":
                self.lines = without(self.lines, (value,))
        self._notable = True
        if status > 599 or codings not in ([], [b"chunked"]):
            self.garbled = True
            return
        # Asked later, after the message's end, the parser always says no
        self._keep_alive = self._parser.should_keep_alive()
        self._closed_by_end = length is None and not codings and status not in {204, 304}
        self._head_complete = True
        self.status, self.length = status, length
        self._sink = self.listener.on_head(self)

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        self._sink(body)

    def on_message_complete(self) -> None:
        if self._head_complete:
            self.complete = self._notable = True
            self._sink = _ignore


def _ignore(_: bytes) -> None:
    pass
