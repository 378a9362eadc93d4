"""A request's head, checked.

Sources: RFC 9112 3.2 and 6.3 (Host, message length).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from memoria.proxy.errors import Answer, Rejection, bad_framing, websocket_only
from memoria.proxy.http.headers import Header, client_request_id, lines_for_engine, nominated, values_of
from memoria.proxy.routing.routes import Methods, Route, choose

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_VISIBLE = re.compile(rb"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """`route` None: it is none of those that go to an engine. `refused` is the answer, where the head alone
    earns one. `own_id` is the client's name for the request; without one memoria makes one up for each.
    `to_engine` is what goes upstream before the id and after it, but for the body's framing and the empty
    line. `model` is the one that the query names, where that is the route's way to do so."""

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

    @property
    def is_own(self) -> bool:
        """memoria itself may answer."""
        return self.route is None and self.refused is None

    @property
    def is_plain(self) -> bool:
        """It is relayed, and nothing about it needs a look at the connection or the body's framing."""
        return (
            self.route is not None
            and self.refused is None
            and self.keep_alive
            and not (self.chunked or self.upgrade or self.expects_continue)
        )

    def body_length(self, declared: Sequence[bytes]) -> int | None:
        """The body's length, None where it is not declared, by the values of Content-Length headers. Raises
        `Rejection` (400)."""
        if not declared:
            return None
        if self.chunked:
            raise Rejection(bad_framing("The request has both Content-Length and Transfer-Encoding"))
        if self.upgrade:
            raise _body_and_upgrade()
        length = declared[0]
        if len(declared) > 1 or not length.isdigit() or len(length) > 18:
            raise Rejection(bad_framing("The Content-Length is not one number"))
        return int(length)


def read_head(
    methods: Methods | None,
    method: bytes,
    target: bytes,
    http_version: str,
    headers: Sequence[Header],
    *,
    keep_alive: bool,
) -> RequestHead:
    """`methods`: the routes at this path, None where it is memoria's own. `headers` come with their names in
    lower case and without Content-Length. A head whose meaning two servers may see differently is refused,
    whoever would answer, and the connection closed after it."""
    route: Route | None = None
    refused: Answer | None = None
    try:
        _check(target, http_version, headers)
        if methods is not None:
            route = choose(methods, method)
            _check_handshake(route, headers)
    except Rejection as rejection:
        refused = rejection.answer
    upgrade = b"upgrade" in nominated(values_of(headers, b"connection"))
    kinds = values_of(headers, b"content-type")
    traces = values_of(headers, b"traceparent")
    start = b"%b %b HTTP/1.1\r\nhost: localhost\r\nx-request-id: " % (method, target)
    return RequestHead(
        method=method,
        route=route,
        refused=refused,
        own_id=client_request_id(headers),
        to_engine=(start, b"\r\n" + b"".join(lines_for_engine(headers))),
        content_type=kinds[0] if kinds else b"",
        model=_model(target) if route is not None and route.model_in == "query" else None,
        chunked=bool(values_of(headers, b"transfer-encoding")),
        upgrade=upgrade,
        http_1_0=http_version == "1.0",
        keep_alive=keep_alive and not upgrade and http_version != "1.0" and method != b"CONNECT",
        expects_continue=http_version != "1.0"
        and b"100-continue" in [value.lower() for value in values_of(headers, b"expect")],
        traceparent=traces[0] if len(traces) == 1 else None,
    )


def _check(target: bytes, http_version: str, headers: Sequence[Header]) -> None:
    if http_version not in {"1.0", "1.1"}:  # a request line without one is HTTP/0.9 to the parser
        raise Rejection(bad_framing("HTTP/1.1 and HTTP/1.0 are understood"))
    if not _VISIBLE.fullmatch(target):
        raise Rejection(bad_framing("The target holds characters that must be escaped"))
    hosts = values_of(headers, b"host")
    if len(hosts) > 1:
        raise Rejection(bad_framing("The request has several Host headers"))
    if not hosts:
        if http_version == "1.1":
            raise Rejection(bad_framing("The request has no Host header"))
    elif not _HOST.fullmatch(hosts[0]):
        raise Rejection(bad_framing("The Host header is not a host"))
    codings = values_of(headers, b"transfer-encoding")
    if codings and (http_version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Rejection(bad_framing("The only Transfer-Encoding understood is `chunked`, in HTTP/1.1"))
    if codings and b"upgrade" in nominated(values_of(headers, b"connection")):
        raise _body_and_upgrade()


def _check_handshake(route: Route, headers: Sequence[Header]) -> None:
    if not route.websocket:
        return
    wanted = [value.lower() for value in values_of(headers, b"upgrade")]
    asks = wanted == [b"websocket"] and b"upgrade" in nominated(values_of(headers, b"connection"))
    if not asks:
        raise Rejection(websocket_only(route.path))


def head_size(target: bytes, headers: Sequence[Header]) -> int:
    """Bytes, but for the method, the version and the blanks around values."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def _model(target: bytes) -> str | None:
    query = parse_qs(target.partition(b"?")[2].decode("latin-1"))
    return query["model"][-1] if "model" in query else None


def _body_and_upgrade() -> Rejection:
    # the parser would stop reading HTTP after the head, so the body would never come
    return Rejection(bad_framing("Send a body in HTTP/1.1, without asking for an upgrade"))
