"""The response on its way to the client: its head, its framing, and how it ends."""

from __future__ import annotations

from asyncio import Transport

from memoria.proxy.answers import Answer
from memoria.proxy.headers import Header, status_line


class Reply:
    """`status` is None until the client was sent something. `complete`: it was sent everything.
    `ends_with_connection`: to the client a plain end of the connection is the end of the body.

    A body is framed by its length where the engine knows that, else in chunks. HTTP/1.0 knows no chunks.
    """

    status: int | None = None
    complete = False
    ends_with_connection = False
    _chunked = False
    _pending = b""  # the head, until there is something to send with it
    _tail = b""  # the latest chunk
    _lines: list[bytes]

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

    def begin(self, status: int, lines: list[bytes], length: int | None, *, keep_alive: bool) -> None:
        """Takes an engine's head, which leaves with the first piece of the body. `length` is the body's, None
        where it is not known. `keep_alive`: the connection stays open after the response."""
        self.status, self._lines = status, lines
        if length is not None and status not in {204, 304}:
            framing = b"content-length: %d\r\nx-request-id: " % length
        elif self._http_1_0 or status in {204, 304}:
            self.ends_with_connection = self._http_1_0
            framing = b"x-request-id: "
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\nx-request-id: "
        end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
        self._pending = b"".join((status_line(status), self._extra, *lines, framing, self._request_id, end))

    def send(self, body: bytes) -> None:
        """A piece of the body, not empty."""
        if self._chunked:
            self._tail = body
            body = b"%x\r\n%b\r\n" % (len(body), body)
        if self._pending:
            body = self._pending + body
            self._pending = b""
        self._write(body)

    def flush(self) -> None:
        """Lets a head go that still waits for a body."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""

    def end(self) -> None:
        if self._chunked:
            self._write(self._pending + b"0\r\n\r\n")
        elif self._pending:
            self._write(self._pending)
        self.complete = True

    def answer(self, answer: Answer, *, keep_alive: bool, body_wanted: bool = True) -> None:
        """Sends an answer of memoria's own, in place of an engine's."""
        body = answer.body
        self.status = answer.status
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
        if self._chunked and self._is_event_stream():
            between = b"" if self._tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
            self.send(between + answer.event)

    def _is_event_stream(self) -> bool:
        fields = dict(zip(self._lines[::4], self._lines[2::4], strict=True))
        kind = fields.get(b"content-type", b"")
        return kind.startswith(b"text/event-stream") and b"content-encoding" not in fields
