"""HTTP/1.1 messages: the fields that pass, heads recognised by their bytes, an engine's response and its way
to the client.

Sources: RFC 9110 7.6.1 (hop-by-hop and Connection-nominated fields), RFC 9112 6.3 (message body length) and
7.1 (chunked coding).
"""

from __future__ import annotations

import re
import time
from asyncio import Transport
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from secrets import token_hex
from typing import Generic, NamedTuple, Self, TypeVar

Header = tuple[bytes, bytes]
Meaning = TypeVar("Meaning")

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
NOT_FOR_CLIENTS = HOP_BY_HOP | {
    # the body is framed anew
    b"content-length",
    b"x-request-id",
    b"set-cookie",
    b"server",
    # the engine's own address, and its requests to browsers that connect to it directly
    b"location",
    b"refresh",
    b"alt-svc",
    b"strict-transport-security",
    b"www-authenticate",
    b"proxy-authenticate",
    # vLLM allows every origin; access is memoria's decision
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-allow-methods",
    b"access-control-allow-headers",
    b"access-control-expose-headers",
    b"access-control-max-age",
}

# in the form that `without` takes
SWITCH = (b"connection", b": ", b"Upgrade", b"\r\n", b"upgrade", b": ", b"websocket", b"\r\n")
END = b"\r\n"
LAST = b"0\r\n\r\n"
LONGEST = 2048  # bytes of a chunk that is recognised by its length
END_BYTES = 2048  # kept of a body's end
_DONE = 64  # bytes of a chunk that carries no tokens: [DONE], or `message_stop`
_BODILESS = frozenset((204, 304))

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_DIGITS = 9
_ID = re.compile(rb"\r\nx-request-id: *([^\r]*)", re.IGNORECASE)
_LONGEST_HEAD = 4096  # bytes; longer heads are not cached
HEAD_END = b"\r\n\r\n"

# A request id, for logs; no secret. All of a process begin alike, a number follows.
new_request_id: Callable[[], bytes] = map((token_hex(8).encode() + b"%016x").__mod__, count(1)).__next__

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def without(lines: list[bytes], names: Collection[bytes]) -> list[bytes]:
    """`lines` (name, colon, value and line end of each field) without the fields of these names."""
    starts = range(0, len(lines), 4)
    return [part for at in starts if lines[at] not in names for part in lines[at : at + 4]]


def nominated(connection: Iterable[bytes]) -> set[bytes]:
    """The names in Connection headers, in lower case."""
    return {token.strip().lower() for value in connection for token in value.split(b",")}


def chunk(piece: bytes) -> bytes:
    """A piece that is not empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _by_length() -> list[tuple[bytes, int]]:
    found = [(b"", 0)] * (LONGEST + 1)
    for size in range(1, LONGEST):
        line = b"%x\r\n" % size
        whole = len(line) + size + len(END)
        if whole <= LONGEST:
            found[whole] = line, size
    return found


# By a chunk's length: its size line and its data's size (0: no chunk has it). Engines write one event at a
# time, and so one chunk: most reads are a whole one, and a length belongs to one size line only.
BY_LENGTH = _by_length()


class HeadCache(NamedTuple, Generic[Meaning]):
    """A head that was parsed once, recognised by its bytes. Clients and engines repeat themselves: the heads
    on one connection mostly differ in their Content-Length alone, and an engine's in the id of the request,
    which it repeats (`--enable-request-id-headers`).

    `before`: all up to the length; of a head without one, up to the id. `after`: what follows the length, up
    to the id; None without a length. `behind`: what follows the id; None without one. `meaning`: what the
    parser found, apart from both."""

    before: bytes
    after: bytes | None
    behind: bytes | None
    meaning: Meaning

    @classmethod
    def of(
        cls, data: bytes, meaning: Meaning, answers: bytes | None = None, *, has_length: bool = True
    ) -> Self | None:
        """`data` begins with a head that a parser accepted; `has_length` is what it found. `answers`: the id
        of the request that this head answers. None for a head that cannot be recognised safely: it does not
        end in `data`, has another id or several, a length that is not written as usual, or a line end that
        parsers may read differently."""
        end = data.find(HEAD_END, 0, _LONGEST_HEAD)
        head = data[: end + len(HEAD_END)]
        if end < 0 or head.count(b"\n") != head.count(END) or head[:1].isspace():
            return None
        lengths = _LENGTH.findall(head)
        ids = [] if answers is None else _ID.findall(head)
        if len(lengths) != has_length or ids not in ([], [answers]):
            return None
        after = behind = None
        if ids and (place := _ID.search(head)):
            head, behind = head[: place.start(1)], head[place.end(1) :]
        if lengths:
            if not (place := _LENGTH.search(head)):
                return None  # it comes behind the id
            head, after = head[: place.start(1)], head[place.end(1) :]
        return cls(head, after, behind, meaning)

    def match(self, data: bytes, answers: bytes = b"") -> tuple[int | None, int] | None:
        """The Content-Length, None without one, and where the body begins in `data`; None if `data` begins
        otherwise. `answers`: the id of the request that it answers."""
        before, after, behind, _ = self
        if not data.startswith(before):
            return None
        start, length = len(before), None
        if after is not None:
            end = data.find(b"\r", start, start + _DIGITS + 1)
            digits = data[start:end]
            if not digits.isdigit() or not data.startswith(after, end):
                return None
            start, length = end + len(after), int(digits)
        if behind is not None:
            behind = answers + behind
            if not data.startswith(behind, start):
                return None
            start += len(behind)
        return length, start


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`fields`: status line and header fields for the client, without the body's framing. `chunked`: the
    engine sends the body in chunks. `bodiless`: the status has no body. `keep_alive`: the engine takes
    another request afterwards. `is_events`: the body is a readable stream of server-sent events."""

    status: int
    fields: bytes
    chunked: bool
    bodiless: bool
    keep_alive: bool
    is_events: bool


def read_response(
    status: int, headers: Sequence[Header], *, keep_alive: bool
) -> tuple[ResponseHead, int | None]:
    """The head, and the body's length (None: not declared). Names in `headers` are in lower case. Raises
    `ValueError` for a head that cannot be relayed."""
    lines: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    length: int | None = None
    kind, coded = b"", False
    for name, value in headers:
        if name not in NOT_FOR_CLIENTS:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-type":
                kind = value
            coded = coded or name == b"content-encoding"
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            connection.append(value)
    if status > 599 or codings not in ([], [b"chunked"]):
        raise ValueError("the response's status or coding is not one of HTTP/1.1")
    if connection:
        lines = without(lines, nominated(connection))
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    head = ResponseHead(
        status,
        line + b"".join(lines),
        chunked=bool(codings),
        bodiless=status in _BODILESS,
        keep_alive=keep_alive,
        is_events=kind.startswith(b"text/event-stream") and not coded,
    )
    return head, length


class Reply:
    """The response on its way to the client: its head, its framing, its end.

    `status` is None until there is something to send. `complete`: everything was sent.
    `ends_with_connection`: to the client, the connection's end is the body's end. `is_events`: the engine
    answers with a stream of events. `first_at`: when the body began (`time.monotonic()`).

    A body is framed by its length where the engine declares it, else in chunks; HTTP/1.0 has no chunks.
    """

    status: int | None = None
    complete = False
    ends_with_connection = False
    is_events = False
    first_at: float | None = None
    _chunked = False
    _through = False  # the head and a first piece are sent: whole chunks pass as they are
    _pending = b""  # the head, until there is something to send with it
    _first = b""  # start of the body's first piece
    _latest = b""  # end of its latest piece
    _before = b""  # end of the one before
    _told = False  # a stream has begun, with comments only: the engine has not answered yet
    _instead: list[bytes] | None = None  # an answer that is no stream, after that

    def __init__(
        self,
        transport: Transport,
        request_id: bytes,
        *,
        http_1_0: bool = False,
        extra: tuple[Header, ...] = (),
    ) -> None:
        """`extra`: headers of every answer to this request, memoria's own or an engine's."""
        self._write = transport.write
        self._extra = b"".join(b"%b: %b\r\n" % header for header in extra) if extra else b""
        self._request_id = request_id
        self._http_1_0 = http_1_0

    @property
    def is_sent(self) -> bool:
        """Something was sent: another answer is no longer possible."""
        return self._told or (self.status is not None and not self._pending)

    def add_header(self, name: bytes, value: bytes) -> None:
        """Beside `extra`; of an answer that has not begun."""
        self._extra += b"%b: %b\r\n" % (name, value)

    def comment(self, text: bytes, *, keep_alive: bool) -> None:
        """Begins a stream of events, or goes on with one that no engine has answered yet, with a line that
        every client skips (WHATWG HTML, 9.2.6)."""
        line = b": %b\n\n" % text
        head = b""
        if not self._told:
            self._told = self._chunked = self._through = self.is_events = True
            end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
            head = b"".join(
                (
                    _STATUS_LINES[200],
                    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n",
                    self._extra,
                    b"x-request-id: %b%b" % (self._request_id, end),
                )
            )
        self._write(head + b"%x\r\n%b\r\n" % (len(line), line))

    @property
    def ends(self) -> bytes:
        """The ends of the body's last two pieces, still framed where they came as chunks; before that, unless
        the body is a stream of events, the start of its first piece. At most `END_BYTES` of each."""
        end = (self._before + self._latest)[-END_BYTES:]
        return end if self.is_events or self._first == end else self._first + end

    def begin(self, head: ResponseHead, length: int | None, *, keep_alive: bool) -> None:
        """Takes an engine's head, which leaves with the body's first piece. `length`: the body's, None where
        it is not declared. `keep_alive`: the client's connection stays open after the response."""
        self.status = head.status
        if self._told:
            self.status = 200  # as the client has seen
            self._instead = None if head.is_events else []
            return
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

    def switch(self, head: ResponseHead) -> None:
        """Sends an engine's 101 at once."""
        self.status = head.status
        self._write(b"".join((head.fields, *SWITCH, b"x-request-id: ", self._request_id, HEAD_END)))

    def send(self, piece: bytes) -> None:
        """A piece of the body, not empty."""
        if self._instead is not None:
            self._instead.append(piece)
            return
        if self.first_at is None:
            self._first, self.first_at = piece[:END_BYTES], time.monotonic()
        # only the end of a long piece: a client that reads slowly would keep the whole piece in memory twice
        self._before, self._latest = self._latest, piece if len(piece) <= END_BYTES else piece[-END_BYTES:]
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            self._through = True
        if self._pending:
            piece = self._pending + piece
            self._pending = b""
        self._write(piece)

    def send_chunk(self, framed: bytes) -> None:
        """A piece of the body as the engine framed it: one chunk without extensions."""
        if not self._through or self._instead is not None:
            self.send(framed[framed.index(END) + len(END) : -len(END)])
            return
        if len(framed) > _DONE:
            self._latest = framed
        self._write(framed)

    def flush(self) -> None:
        """Sends a head that still waits for its body."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""

    def end(self) -> None:
        if self._instead is not None:  # an error, as the stream's only event
            body, self._instead = b"".join(self._instead), None
            self.send(b"data: %b\n\ndata: [DONE]\n\n" % body.replace(b"\n", b" "))
        if self._chunked:
            self._write(self._pending + LAST)
        elif self._pending:
            self._write(self._pending)
        self.complete = True

    def answer(
        self,
        status: int,
        body: bytes,
        headers: Iterable[Header],
        *,
        keep_alive: bool = False,
        body_wanted: bool = True,
    ) -> None:
        """Sends an answer of memoria's own (JSON) instead of an engine's."""
        self.status, self._pending = status, b""
        lines = [
            _STATUS_LINES[status],
            b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b"",
            b"x-request-id: %b\r\n" % self._request_id,
            self._extra,
            *(b"%b: %b\r\n" % header for header in headers),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
        ]
        if body_wanted:
            lines.append(body)
        self._write(b"".join(lines))
        self.complete = True

    def explain(self, event: bytes) -> None:
        """Sends the reason why a response will be cut as the last event of an event stream; other responses
        have no place for it. No last chunk follows."""
        if self.is_events:
            self.send(b"\n\n" + event)  # an empty line ends whatever came before
