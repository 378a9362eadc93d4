"""What is told about a request when it is over."""

from __future__ import annotations

from typing import NamedTuple

CLIENT_GONE = 499  # nginx's number for a client that left before it was answered


class RequestRecord(
    NamedTuple
):  # a tuple, since it is made for every request and costs a third of a dataclass
    """`engine` and `route` (the table's path) are None where the request was turned away before they were
    known. Times in seconds from the request's arrival; `first_byte_s` is that of the answer's body, or of its
    head where it has no body, and None when the engine answered nothing. `complete`: the client was sent the
    whole of its answer. `key` is the name of the API key, `client` the address. `ends`: what the engine's
    body ends with, and may begin with (`Reply.ends`). `traceparent`: the client's header, where there is
    exactly one. `streamed`: the answer came as events."""

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
