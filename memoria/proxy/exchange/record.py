"""The record of a finished request."""

from __future__ import annotations

from typing import NamedTuple

CLIENT_GONE = 499  # nginx's status for a client that left before it was answered


class RequestRecord(NamedTuple):  # made for every request: a tuple costs a third of a dataclass
    """`engine` and `route` (the table's path) are None for a request refused before they were known. Times in
    seconds from the request's arrival; `first_byte_s` is that of the answer's body, or of its head without a
    body, None when the engine answered nothing. `complete`: the whole answer was sent. `key`: the API key's
    name; `client`: the address. `ends`: the end of the engine's body, and maybe its start (`Reply.ends`).
    `traceparent`: the client's header, if there is exactly one. `streamed`: the answer came as events."""

    request_id: str
    engine: str | None
    route: str | None
    status: int
    response_bytes: int
    first_byte_s: float | None
    duration_s: float
    complete: bool
    replays: int
    method: str = ""
    key: str | None = None
    client: str = ""
    request_bytes: int = 0
    ends: bytes = b""
    traceparent: bytes | None = None
    streamed: bool = False
