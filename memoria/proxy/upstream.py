"""The connections to engines: an `asyncio.Protocol` on httptools' parser, and the pool of idle ones.

A connection reads one response at a time and passes on every piece inside the callback that brought it: no
task wakes up between an engine's bytes and the client's socket. What needs no parser is not parsed: a head
that came before, a body of known length, a chunk that is one read.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import httptools

from memoria.aio import Backlog
from memoria.proxy.http.messages import (
    BY_LENGTH,
    END,
    LAST,
    LONGEST,
    HeadCache,
    Header,
    ResponseHead,
    read_response,
)
from memoria.vllm.facts import EngineAddress, UnixAddress

LARGE_READ = 64 * 1024  # bytes; while so much comes, the event loop reads up to 32 times in a row
SWEEPS = 4  # in the time that a connection may be idle
_CACHED = b"HTTP/1.1 200 "  # start of the heads worth caching
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"  # for a parser that did not see the head
_OVERHEAD = 64 * 1024  # bytes in which no body comes: heads, trailers, extensions of chunks


class Sink(Protocol):
    """Takes a response's body, piece by piece, none of them empty."""

    def send(self, piece: bytes) -> None: ...

    def send_chunk(self, framed: bytes) -> None:
        """A piece still framed as one chunk without extensions."""

    def flush(self) -> None:
        """The body's next piece may take long. Called when the head of a body without a length is here, with
        what came along; a body with a length follows its head at once and may leave with it."""


class Listener(Protocol):
    """The exchange that a response belongs to. Called from the event loop's callbacks; must not block.

    `switches`: it takes a 101, after which everything that comes is the body."""

    @property
    def switches(self) -> bool: ...

    def on_response_head(self, upstream: Upstream) -> Sink:
        """The head is here (1xx heads are skipped). Returns the body's sink."""

    def on_response_end(self, upstream: Upstream) -> None:
        """The response is complete."""

    def on_upstream_lost(self, upstream: Upstream) -> None:
        """The response will not be completed: the connection is gone, or `upstream.garbled`."""

    def on_upstream_writable(self) -> None:
        """The engine has taken most of what was written."""


class Upstream(asyncio.Protocol):
    """From `on_response_head` on: `head`, and `length` of the body (None: not declared). `received`: bytes of
    the body; `reads`: reads that brought something; `pauses`: how often reading was paused. `idle`: the
    pool's list for this address.

    `unread`, with `on_upstream_lost`: the engine cannot have read all of the request. Sources: RFC 1122
    4.2.2.13 and unix(7): closing with unread bytes sends a reset instead of an end, and writing to a closed
    connection returns one. A process that dies leaves the same."""

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
    _id = b""  # of the request
    _sink: Sink | None = None
    _left = 0  # bytes of a body that is counted, not parsed
    _between_chunks = False  # where the parser is
    _send_chunk: Callable[[bytes], None] | None = None  # takes the next read, if it is one chunk
    _headers: list[Header]
    _switched = False  # it is no longer HTTP
    _overhead = 0  # bytes since a piece of the body came
    _notable = False  # the read brought more than a piece of the body
    _has_turn = False

    def __init__(self, address: EngineAddress, pool: Pool) -> None:
        self.address = address
        self._pool = pool
        self._known_heads = pool.known_heads[address]
        self.reads = self.received = 0
        self.complete = False

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "idle" if self.listener is None else "busy"
        return f"<Upstream {self.address} {state}>"

    # To the engine

    def begin(self, listener: Listener, data: bytes, request_id: bytes = b"") -> None:
        """Writes the start of a request, whose response is the listener's. `request_id`: what it tells the
        engine as X-Request-Id."""
        self.listener, self._id = listener, request_id
        self.reads = self.received = self._overhead = 0
        self.complete = False
        self.head, self._headers = None, []
        if self._transport is not None:
            self._transport.write(data)

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

    def _give_way(self) -> None:
        """The next read not before this connection's turn."""
        if self._transport is not None and not self._has_turn:
            self._has_turn = True
            self._transport.pause_reading()
            self._pool.backlog.add(self._on_turn)

    def _on_turn(self) -> None:
        self._has_turn = False
        if self._transport is not None and not self.read_paused:
            self._transport.resume_reading()

    # The end

    def rest(self, now: float) -> bool:
        """Ends the exchange whose response was read. False: the connection cannot take another. `now`: loop
        time."""
        head = self.head
        if (
            head is None
            or not head.keep_alive
            or not self.complete
            or self.garbled
            or self._transport is None
        ):
            self.abort()
            return False
        self.listener = self._sink = self._send_chunk = None
        if self.read_paused:  # with the last piece, for a client that lagged
            self.resume_reading()
        self.idle_since = now
        return True

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
            if data == LAST and self.listener is not None:
                self.reads += 1
                self._parser = None  # it did not see the body's end
                self._between_chunks = False
                self.complete = True
                self.listener.on_response_end(self)
                return
        listener = self.listener
        if listener is None:
            self._pool.discard(self)
            self.abort()  # bytes without a request
            return
        self.reads += 1
        if len(data) >= LARGE_READ and not self._pool.backlog.has_room():
            self._give_way()
        if self._left:
            self._receive_counted(data, listener)
            return
        if self.head is None and self.reads == 1:
            for known in self._known_heads.values():
                found = known.match(data, self._id)
                if found is not None:
                    self._receive_known(known.meaning, *found, data, listener)
                    return
        if self._between_chunks and self._parser is None:
            self._begin_behind_head()
        self._parse(data, listener)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.listener is not None:
            self.listener.on_upstream_writable()

    def eof_received(self) -> None:
        """The engine did not read what was not written, or not acknowledged by its kernel with the end. A
        reset that came with the end shows only at the socket."""
        transport = self._transport
        if self.listener is None:
            self._pool.discard(self)
        elif transport is not None:
            end = transport.get_extra_info("socket")
            failed = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.unread = failed != 0 or transport.get_write_buffer_size() > 0 or unacknowledged(end) > 0

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.unread = self.unread or isinstance(error, ConnectionResetError | BrokenPipeError)
        self._parser = None  # it refers back here
        self._pool.discard(self)
        listener, self.listener = self.listener, None
        self._sink = self._send_chunk = None
        if listener is None:
            return
        if error is None and not self.complete and self._ends_with_connection:
            self.complete = True
            listener.on_response_end(self)
        else:
            listener.on_upstream_lost(self)

    @property
    def _ends_with_connection(self) -> bool:
        head = self.head
        return head is not None and not head.chunked and self.length is None and not head.bodiless

    # Without the parser

    def _receive_known(
        self, head: ResponseHead, length: int | None, start: int, data: bytes, listener: Listener
    ) -> None:
        """A cached head, whose body begins in `data` at `start`."""
        self.head, self.length = head, length
        self._sink = sink = listener.on_response_head(self)
        body = data[start:]
        if length is None:
            self._receive_first_chunks(body, listener, sink)
            return
        self._left = length
        if body or not length:
            self._receive_counted(body, listener)

    def _receive_first_chunks(self, body: bytes, listener: Listener, sink: Sink) -> None:
        """What came with a cached head. There is no parser until a read is no whole chunk."""
        self._parser, self._between_chunks = None, True
        self._send_chunk = sink.send_chunk
        if body:
            self.reads -= 1  # it is still the same
            self.data_received(body)
        if self.listener is listener and not self.complete:
            sink.flush()

    def _receive_counted(self, data: bytes, listener: Listener) -> None:
        """A piece of a body of known length."""
        if len(data) > self._left:
            self.garbled = True  # more than was declared
            data = data[: self._left]
        self._left -= len(data)
        self.received += len(data)
        if data:
            assert self._sink is not None
            self._sink.send(data)
        if not self._left:
            self.complete = True
            listener.on_response_end(self)

    # With the parser

    def _begin_behind_head(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(_CHUNKED)

    def _parse(self, data: bytes, listener: Listener) -> None:
        first = self.reads == 1 and self.head is None
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # an error of memoria's own
        except httptools.HttpParserUpgrade as upgrade:
            if self._switched:
                self._parser, self._left = None, sys.maxsize
                self._receive_counted(data[upgrade.args[0] :], listener)
                return
            self.garbled = True
        except httptools.HttpParserError:
            self.garbled = True
        self.garbled = self.garbled or self._overhead > _OVERHEAD
        sink, head = self._sink, self.head
        # the parser does not report a size line that is not here as a whole
        between = self._between_chunks and data.endswith(END)
        self._send_chunk = sink.send_chunk if between and sink is not None else None
        if not (self._notable or self.garbled):
            return
        self._notable = False
        framed = head is not None and head.chunked == (self.length is None)
        if first and head is not None and framed and not self.garbled and data.startswith(_CACHED):
            # for all connections: within a second, an engine's heads differ in length and id alone
            known = HeadCache.of(data, head, self._id, has_length=not head.chunked)
            if known is not None:
                self._known_heads[head.chunked] = known
        if self.complete:
            listener.on_response_end(self)
        elif self.garbled:
            self.abort()
            listener.on_upstream_lost(self)
        elif self.length is not None:
            self._left = self.length - self.received
            self._parser = None
        elif sink is not None:
            sink.flush()

    def on_message_begin(self) -> None:
        if self.complete:
            self.garbled = True  # a second response, to no request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else a trailer
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete or self.garbled or self._parser is None or self.listener is None:
            return
        if self.head is not None:
            return  # that was `_CHUNKED`
        status = self._parser.get_status_code()
        self._switched = status == 101 and self.listener.switches and self._parser.should_upgrade()
        if status < 200 and not self._switched:
            self._headers.clear()
            return
        self._notable = True
        # after the message's end, the parser always answers no
        keep_alive = not self._switched and self._parser.should_keep_alive()
        try:
            head, self.length = read_response(status, self._headers, keep_alive=keep_alive)
        except ValueError:
            self.garbled = True
            return
        self.head = head
        self._sink = self.listener.on_response_head(self)
        self._between_chunks = head.chunked

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_body(self, body: bytes) -> None:
        if self._sink is not None and not self.complete:
            self._overhead = 0
            self.received += len(body)
            self._sink.send(body)

    def on_message_complete(self) -> None:
        self._between_chunks = False
        if self.head is not None and not self._switched:
            self.complete = self._notable = True


def unacknowledged(connection: socket.socket) -> int:
    """Bytes (SIOCOUTQ of tcp(7), which has the number of TIOCOUTQ)."""
    (queued,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(queued)


class Connecting(Protocol):
    def on_connected(self, upstream: Upstream) -> None: ...

    def on_unreachable(self) -> None: ...


async def connect(address: EngineAddress, pool: Pool, timeout: float, listener: Connecting) -> None:
    """Opens a connection within `timeout` seconds, and calls back."""
    loop = asyncio.get_running_loop()
    make = partial(Upstream, address, pool)
    try:
        if isinstance(address, UnixAddress):  # done or refused at once (connect(2), EAGAIN): nothing to time
            _, upstream = await loop.create_unix_connection(make, address.path)
        else:
            async with asyncio.timeout(timeout):
                _, upstream = await loop.create_connection(make, address.host, address.port)
    except OSError:
        listener.on_unreachable()
    else:
        listener.on_connected(upstream)


class Pool:
    """Idle connections by address, the latest used is lent first: the others age and are dropped after
    `idle_s` seconds, or up to a quarter sooner (vLLM must keep them longer: VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""

    def __init__(self, *, idle_s: float = 60.0) -> None:
        self._idle_s = idle_s
        self.backlog = Backlog()  # of clients, too
        self._idle: defaultdict[EngineAddress, list[Upstream]] = defaultdict(list)
        # each engine's latest head with a length, and in chunks
        self.known_heads: defaultdict[EngineAddress, dict[bool, HeadCache[ResponseHead]]] = defaultdict(dict)
        self._sweep: asyncio.TimerHandle | None = None
        self._now = 0.0  # loop time of the latest sweep: cheaper than the time of every request's end

    def __repr__(self) -> str:
        counts = ", ".join(f"{address}: {len(idle)}" for address, idle in self._idle.items() if idle)
        return f"<Pool idle {{{counts}}}>"

    def take(self, address: EngineAddress) -> Upstream | None:
        idle = self._idle.get(address)
        return idle.pop() if idle else None

    def give_back(self, upstream: Upstream) -> None:
        """Takes a connection whose response was read to its end; one that cannot be used again is closed."""
        if self._sweep is None:
            self._sweep_later()
        if upstream.rest(self._now):
            self._idle[upstream.address].append(upstream)

    def discard(self, upstream: Upstream) -> None:
        """At once when it ends: the loop reports the loss one iteration later, and it could be lent until
        then."""
        with suppress(ValueError):
            self._idle.get(upstream.address, []).remove(upstream)

    def forget(self, address: EngineAddress) -> None:
        """Closes the idle connections to an engine that is gone."""
        self.known_heads.pop(address, None)
        for upstream in tuple(self._idle.pop(address, ())):
            upstream.abort()

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for address in list(self._idle):
            self.forget(address)

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        self._sweep = loop.call_later(self._idle_s / SWEEPS, self._drop_old)

    def _drop_old(self) -> None:
        self._sweep = None
        if any(self._idle.values()):
            self._sweep_later()
        for idle in self._idle.values():
            while idle and idle[0].idle_since <= self._now - self._idle_s:
                idle.pop(0).abort()
