"""Which header fields pass, in both directions, and what a head is written with.

Sources: RFC 9110 7.6.1 (hop-by-hop and Connection-nominated fields).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from itertools import count
from secrets import token_hex

Header = tuple[bytes, bytes]

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
# memoria decides who may ask and says so in no header; engines have no key and no session
_NOT_FOR_ENGINES = _HOP_BY_HOP | {
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
# a body's framing is written anew
NOT_FOR_CLIENTS = _HOP_BY_HOP | {
    b"content-length",
    b"x-request-id",
    b"set-cookie",
    b"server",
    # an engine's address, and what it asks of browsers that come to it, are not memoria's
    b"location",
    b"refresh",
    b"alt-svc",
    b"strict-transport-security",
    b"www-authenticate",
    b"proxy-authenticate",
    # vLLM allows every page; who may ask is memoria's to say
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-allow-methods",
    b"access-control-allow-headers",
    b"access-control-expose-headers",
    b"access-control-max-age",
}

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_OUR_IDS = token_hex(8).encode()  # what all ids of this process begin with; a number follows
_numbers = count(1)

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def lines_for_engine(headers: Sequence[Header]) -> list[bytes]:
    """The fields that an engine gets (names in lower case), as name, colon, value and end of line each. Names
    with underscores are dropped: WSGI-like servers read them as if they had dashes."""
    lines: list[bytes] = []
    for name, value in headers:
        if name not in _NOT_FOR_ENGINES and b"_" not in name and not name.startswith(b"x-forwarded-"):
            lines += (name, b": ", value, b"\r\n")
    return without(lines, [value for name, value in headers if name == b"connection"])


def without(lines: list[bytes], connection: Sequence[bytes]) -> list[bytes]:
    """`lines`, as above, without the fields that the values of Connection headers nominate."""
    if not connection:
        return lines
    names = nominated(connection)
    starts = range(0, len(lines), 4)
    return [part for at in starts if lines[at] not in names for part in lines[at : at + 4]]


def nominated(connection: Iterable[bytes]) -> set[bytes]:
    return {token.strip().lower() for value in connection for token in value.split(b",")}


def values_of(headers: Iterable[Header], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def client_request_id(headers: Iterable[Header]) -> bytes | None:
    """The client's own id, where there is exactly one and it is sane."""
    found = values_of(headers, b"x-request-id")
    return found[0] if len(found) == 1 and _REQUEST_ID.fullmatch(found[0]) else None


def new_request_id() -> bytes:
    """For logs, not a secret."""
    return b"%b%016x" % (_OUR_IDS, next(_numbers))


def status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
