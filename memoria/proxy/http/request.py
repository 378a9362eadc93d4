"""A client's request: its head, checked, and its body as it arrives.

Sources: RFC 9110 7.6.1 (hop-by-hop fields), RFC 9112 3.2 and 6.3 (Host, message body length).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs

from memoria.proxy.errors import Answer, Rejection, bad_framing, body_too_large, websocket_only
from memoria.proxy.http.messages import END, HOP_BY_HOP, SWITCH, Header, nominated, without
from memoria.proxy.routing.routes import Methods, Route, choose
from memoria.proxy.routing.scan import SHORTEST_START, Scan

REPLAYABLE_BYTES = 2**20  # a larger body is not kept once it has been written

# access is memoria's decision, and engines have neither keys nor sessions
_NOT_FOR_ENGINES = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"x-request-id",
    b"authorization",
    b"proxy-authorization",
    b"proxy-authenticate",
    b"x-api-key",
    b"origin",
    b"cookie",
    b"forwarded",
}
_READ_HERE = frozenset(
    (
        b"host",
        b"connection",
        b"upgrade",
        b"transfer-encoding",
        b"expect",
        b"content-type",
        b"x-request-id",
        b"traceparent",
    )
)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

Fields = dict[bytes, list[bytes]]


@dataclass(frozen=True, slots=True)
class RequestHead:
    """`route` None: not one of the engines' routes. `refused`: the answer, where the head alone earns one.
    `own_id`: the client's id for the request. `to_engine`: what goes upstream before and after the id,
    without the body's framing and the empty line. `model`: the one named in the query, on routes that take it
    there. `cacheable`: it is relayed, and neither the connection nor the body's framing needs another
    look."""

    method: bytes
    route: Route | None
    refused: Answer | None
    own_id: bytes | None
    to_engine: tuple[bytes, bytes]
    content_type: bytes
    model: str | None
    chunked: bool
    upgrade: bool
    http_1_0: bool
    keep_alive: bool
    expects_continue: bool
    traceparent: bytes | None
    cacheable: bool

    def body_length(self, declared: Sequence[bytes], limit: int) -> int:
        """The body's length by the values of its Content-Length headers, at least one. Raises `Rejection`
        (400, or 413 above `limit` bytes)."""
        if self.chunked:
            raise Rejection(bad_framing("The request has both Content-Length and Transfer-Encoding"))
        if self.route is not None and self.route.websocket:
            raise _handshake_with_body()
        length = declared[0]
        if len(declared) > 1 or not length.isdigit() or len(length) > 18:
            raise Rejection(bad_framing("The Content-Length is not one number"))
        if int(length) > limit:
            raise Rejection(body_too_large(limit))
        return int(length)


def read_head(
    methods: Methods | None,
    method: bytes,
    target: bytes,
    http_version: str,
    headers: Sequence[Header],
    *,
    keep_alive: bool,
    sent: bytes | None = None,
) -> RequestHead:
    """`methods`: the routes at this path, None where memoria itself answers. `sent`: the target as it came,
    where `target` is only its path and query. Names in `headers` are in lower case, without Content-Length. A
    head that two servers may read differently is refused, and the connection closed."""
    fields: Fields = {}
    lines: list[bytes] = []
    for name, value in headers:
        if name in _READ_HERE:
            fields.setdefault(name, []).append(value)
        # WSGI-like servers read underscores in names as dashes
        if name not in _NOT_FOR_ENGINES and b"_" not in name and not name.startswith(b"x-forwarded-"):
            lines += (name, b": ", value, b"\r\n")
    upgrade = False
    connection = fields.get(b"connection")
    if connection is not None and connection != [b"keep-alive"]:
        names = nominated(connection)
        lines = without(lines, names)
        upgrade = b"upgrade" in names
    route: Route | None = None
    refused: Answer | None = None
    try:
        _check(sent or target, http_version, fields, is_proxying=method == b"CONNECT")
        if methods is not None:
            route = methods.get(method) or choose(methods, method)
            if route.websocket:
                _check_handshake(route, fields, upgrade=upgrade)
                lines += SWITCH
    except Rejection as rejection:
        refused = rejection.answer
    traces, kinds = fields.get(b"traceparent", ()), fields.get(b"content-type")
    chunked = b"transfer-encoding" in fields
    keeps = keep_alive and not upgrade and http_version != "1.0" and method != b"CONNECT"
    continues = http_version != "1.0" and b"100-continue" in map(bytes.lower, fields.get(b"expect", ()))
    start = b"%b %b HTTP/1.1\r\nhost: localhost\r\nx-request-id: " % (method, target)
    return RequestHead(
        method=method,
        route=route,
        refused=refused,
        own_id=_request_id(fields) if b"x-request-id" in fields else None,
        to_engine=(start, b"\r\n" + b"".join(lines)),
        content_type=kinds[0] if kinds else b"",
        model=_model(target) if route is not None and route.model_in == "query" else None,
        chunked=chunked,
        upgrade=upgrade,
        http_1_0=http_version == "1.0",
        keep_alive=keeps,
        expects_continue=continues,
        traceparent=traces[0] if len(traces) == 1 else None,
        cacheable=route is not None and refused is None and keeps and not (chunked or upgrade or continues),
    )


def _check(target: bytes, http_version: str, fields: Fields, *, is_proxying: bool) -> None:
    if http_version not in {"1.0", "1.1"}:  # the parser takes a request line without a version for HTTP/0.9
        raise Rejection(bad_framing("HTTP/1.1 and HTTP/1.0 are understood"))
    if not _VISIBLE.fullmatch(target):
        raise Rejection(bad_framing("The target holds characters that must be escaped"))
    hosts = fields.get(b"host")
    if hosts is None:
        if http_version == "1.1":
            raise Rejection(bad_framing("The request has no Host header"))
    elif len(hosts) > 1:
        raise Rejection(bad_framing("The request has several Host headers"))
    elif not _HOST.fullmatch(hosts[0]):
        raise Rejection(bad_framing("The Host header is not a host"))
    if target[:1] != b"/" and target != b"*" and not is_proxying:
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise Rejection(bad_framing("The target is neither a path nor of `http://` or `https://`"))
        if hosts is None or absolute[1].lower() != hosts[0].lower():
            raise Rejection(bad_framing("The target and the Host header name different hosts"))
    if len(set(fields.get(b"content-type", ()))) > 1:
        raise Rejection(bad_framing("The request has several Content-Type headers"))
    codings = fields.get(b"transfer-encoding", ())
    if codings and (http_version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Rejection(bad_framing("The only Transfer-Encoding understood is `chunked`, in HTTP/1.1"))


def _check_handshake(route: Route, fields: Fields, *, upgrade: bool) -> None:
    wanted = [value.lower() for value in fields.get(b"upgrade", ())]
    if not upgrade or wanted != [b"websocket"]:
        raise Rejection(websocket_only(route.path))
    if b"transfer-encoding" in fields:
        raise _handshake_with_body()


def _handshake_with_body() -> Rejection:
    return Rejection(bad_framing("A WebSocket handshake has no body"))


def _request_id(fields: Fields) -> bytes | None:
    """The client's own id, if there is exactly one and it is sane."""
    ids = fields[b"x-request-id"]
    return ids[0] if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else None


def _model(target: bytes) -> str | None:
    query = parse_qs(target.partition(b"?")[2].decode("latin-1"))
    return query["model"][-1] if "model" in query else None


class Engine(Protocol):
    """What a body is written to. `write_paused`: it was given more than it takes."""

    @property
    def write_paused(self) -> bool: ...

    def write(self, data: bytes) -> None: ...


class Upload:
    """A body on its way from the client: counted, and kept while it may have to be sent again.

    `limit`: the most bytes it may have. `declared`: the announced length, None without one. `pieces`: all of
    it so far, None when no longer kept. `unwritten`: what is still to be passed on, from `begin` on.
    `chunked`: sent to the engine in chunks."""

    TINY = 4096  # bytes; smaller pieces, but for the first, are kept together: each alone would cost more
    LARGE = 64 * 1024  # bytes; a larger body is neither copied together nor read before it can be passed on

    declared: int | None = None
    size = 0
    complete = False
    chunked = False
    pieces: list[bytes | bytearray] | None
    scan: Scan | None = None  # of a large body, where something in it decides
    _scanned = 0  # pieces

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pieces = []
        self.unwritten: deque[bytes] = deque()

    @property
    def missing(self) -> int:
        """Bytes still to come; 0 if the length is not known."""
        return 0 if self.complete or self.declared is None else self.declared - self.size

    def keep_more(self, piece: bytes) -> None:
        pieces = self.pieces
        assert pieces
        last, is_tiny = pieces[-1], len(piece) < self.TINY
        if isinstance(last, bytearray):
            if is_tiny and len(last) < self.LARGE:
                last += piece
                return
            pieces[-1] = bytes(last)  # now: all of them at once would take long
        pieces.append(bytearray(piece) if is_tiny else piece)

    def scan_more(self, begin: Callable[[], Scan]) -> Scan:
        """The scan, with all that came, except for a piece that still grows."""
        pieces = self.pieces or []
        grows = bool(pieces) and isinstance(pieces[-1], bytearray) and not self.complete
        new = list(map(bytes, pieces[self._scanned : len(pieces) - grows]))
        if self.scan is None:
            self.scan = begin()
            while len(new) > 1 and len(new[0]) < SHORTEST_START:
                new[:2] = [new[0] + new[1]]
        self._scanned = len(pieces) - grows
        for piece in new:
            self.scan.feed(piece)
        return self.scan

    def scan_again(self) -> None:
        """From its start."""
        self.scan, self._scanned = None, 0

    def replace(self, pieces: Sequence[bytes]) -> None:
        """Another body instead of the complete one that came."""
        self.pieces, self.size = [*pieces], sum(map(len, pieces))
        self.declared = self.size

    def begin(self) -> bytes:
        """The body's framing for the engine, as the end of the head. All of the body so far is unwritten."""
        assert self.pieces is not None
        self.unwritten = deque(map(bytes, self.pieces))  # of which the last may grow meanwhile
        if self.size > REPLAYABLE_BYTES:
            self.pieces = self.scan = None
        length = (self.size or self.declared) if self.complete else self.declared
        if length is not None:
            return b"content-length: %d\r\n\r\n" % length
        if self.complete:
            return b"\r\n"
        self.chunked = True
        if self.size:
            self.unwritten.appendleft(b"%x\r\n" % self.size)
            self.unwritten.append(END)
        return b"transfer-encoding: chunked\r\n\r\n"

    def write_on(self, engine: Engine, more: bytes = b"") -> bool:
        """As much as the engine takes: not all at once, which would be freed at once, too. Whether all."""
        unwritten = self.unwritten
        if more:
            unwritten.append(more)
            if self.size > REPLAYABLE_BYTES:
                self.pieces = self.scan = None
        while unwritten and not engine.write_paused:
            engine.write(unwritten.popleft())
        return not engine.write_paused

    def take_all(self) -> list[bytes]:
        """What is kept of it, for its last owner."""
        kept = [*map(bytes, self.pieces or ()), *self.unwritten, *(self.scan.kept if self.scan else ())]
        self.pieces = self.scan = None
        self.unwritten.clear()
        return kept
