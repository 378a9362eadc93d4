"""A response's head, checked: what of it goes to the client, and how its body ends.

Sources: RFC 9112 6.3 (message body length).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoria.proxy.http.headers import NOT_FOR_CLIENTS, Header, status_line, without

_BODILESS = frozenset((204, 304))


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`fields` is the status line and the header fields for the client, but for the body's framing.
    `chunked`: so the body comes. `keep_alive`: the engine takes another request afterwards. `is_events`: the
    body is a stream of server-sent events that can be read."""

    status: int
    fields: bytes
    chunked: bool
    keep_alive: bool
    is_events: bool

    @property
    def bodiless(self) -> bool:
        return self.status in _BODILESS


def read_response(
    status: int, headers: Sequence[Header], *, keep_alive: bool
) -> tuple[ResponseHead, int | None]:
    """The head and the body's length, None where the head does not tell it. `headers` come with their names
    in lower case. Raises `ValueError` for a head that cannot be relayed."""
    lines: list[bytes] = []
    codings: list[bytes] = []
    nominated: list[bytes] = []
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
            nominated.append(value)
    if status > 599 or codings not in ([], [b"chunked"]):
        raise ValueError("the response's status or coding is not one of HTTP/1.1")
    head = ResponseHead(
        status,
        status_line(status) + b"".join(without(lines, nominated)),
        chunked=bool(codings),
        keep_alive=keep_alive,
        is_events=kind.startswith(b"text/event-stream") and not coded,
    )
    return head, length
