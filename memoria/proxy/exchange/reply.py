"""The response on its way to the client: its head, its framing, and how it ends."""

from __future__ import annotations

import time
from asyncio import Transport

from memoria.proxy.errors import Answer
from memoria.proxy.http.chunks import LAST, chunk, data_of
from memoria.proxy.http.headers import Header, status_line
from memoria.proxy.http.response import ResponseHead

END_BYTES = 2048
_SHORT = 64  # bytes of a chunk that tells of no tokens: [DONE], or `message_stop`


class Reply:
    """`status` is None until there is something to send. `complete`: the client was sent everything.
    `ends_with_connection`: to the client a plain end of the connection is the end of the body.
    `is_events`: the engine answers with a stream of events. `first_at`: when the body began
    (`time.monotonic()`).

    A body is framed by its length where the engine knows that, else in chunks. HTTP/1.0 knows no chunks.
    """

    status: int | None = None
    complete = False
    ends_with_connection = False
    is_events = False
    first_at: float | None = None
    _chunked = False
    _through = False  # the head and a first piece are sent, and chunks need no other framing
    _pending = b""  # the head, until there is something to send with it
    _first = b""  # what the body's first piece begins with
    _latest = b""  # what its latest one ends with
    _before = b""  # and the one before that

    def __init__(
        self,
        transport: Transport,
        request_id: bytes,
        *,
        http_1_0: bool = False,
        extra: tuple[Header, ...] = (),
    ) -> None:
        """`extra` goes with whatever answer the request gets."""
        self._write = transport.write
        self._extra = b"".join(b"%b: %b\r\n" % header for header in extra) if extra else b""
        self._request_id = request_id
        self._http_1_0 = http_1_0

    @property
    def is_sent(self) -> bool:
        """The client was sent something, so that another answer is out of the question."""
        return self.status is not None and not self._pending

    @property
    def ends(self) -> bytes:
        """What the body's last two pieces end with, framed where they came as chunks; before that, what one
        that is no stream of events begins with. At most `END_BYTES` of each."""
        end = (self._before + self._latest)[-END_BYTES:]
        return end if self.is_events or self._first == end else self._first + end

    def begin(self, head: ResponseHead, length: int | None, *, keep_alive: bool) -> None:
        """Takes an engine's head, which leaves with the first piece of the body. `length` is the body's, None
        where it is not known. `keep_alive`: the connection stays open after the response."""
        self.status = head.status
        if length is not None and not head.bodiless:
            framing = b"content-length: %d\r\n" % length
        elif self._http_1_0 or head.bodiless:
            self.ends_with_connection = self._http_1_0
            framing = b""
        else:
            self._chunked, self.is_events = True, head.is_events
            framing = b"transfer-encoding: chunked\r\n"
        end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
        self._pending = b"%b%b%bx-request-id: %b%b" % (
            head.fields,
            self._extra,
            framing,
            self._request_id,
            end,
        )

    def send(self, piece: bytes) -> None:
        """A piece of the body, not empty."""
        if self.first_at is None:
            self._first, self.first_at = piece[:END_BYTES], time.monotonic()
        # no more of a piece than is needed: for a client that takes nothing it would be there twice
        self._before, self._latest = self._latest, piece if len(piece) <= END_BYTES else piece[-END_BYTES:]
        if self._chunked:
            piece = chunk(piece)
            self._through = True
        if self._pending:
            piece = self._pending + piece
            self._pending = b""
        self._write(piece)

    def send_chunk(self, framed: bytes) -> None:
        """A piece of the body as the engine framed it."""
        if not self._through:
            self.send(data_of(framed))
            return
        if len(framed) > _SHORT:
            self._latest = framed
        self._write(framed)

    def flush(self) -> None:
        """Lets a head go that still waits for a body."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""

    def end(self) -> None:
        if self._chunked:
            self._write(self._pending + LAST)
        elif self._pending:
            self._write(self._pending)
        self.complete = True

    def answer(self, answer: Answer, *, keep_alive: bool, body_wanted: bool = True) -> None:
        """Sends an answer of memoria's own, in place of an engine's."""
        body = answer.body
        self.status, self._pending = answer.status, b""
        lines = [
            status_line(answer.status),
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b"",
            b"x-request-id: %b\r\n" % self._request_id,
            self._extra,
            *(b"%b: %b\r\n" % header for header in answer.headers),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
        ]
        if body_wanted:
            lines.append(body)
        self._write(b"".join(lines))
        self.complete = True

    def explain(self, answer: Answer) -> None:
        """Sends the reason for which a begun response will be cut short, where there is a way to: as the last
        event of an event stream. No last chunk follows."""
        if self.is_events:
            self.send(b"\n\n" + answer.event)  # whatever came before, an empty line ends it
