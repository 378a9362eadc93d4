"""Answers without an end: only so many at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from memoria.proxy.errors import Answer, Rejection

MOST = 64
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


class Streams:
    """Those that take nothing for long are cut by their connection (memoria/proxy/downstream/connection.py).
    `open` is how many there are over HTTP, and on the admin socket, whose owner those cannot keep out."""

    def __init__(self) -> None:
        self.open = {"http": 0, "socket": 0}

    def response(self, content: AsyncIterator[str], media_type: str) -> StreamingResponse:
        return _Stream(self, content, media_type)


class _Stream(StreamingResponse):
    def __init__(self, streams: Streams, content: AsyncIterator[str], media_type: str) -> None:
        super().__init__(content, media_type=media_type, headers=HEADERS)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Rejection`: 503 where there are too many already."""
        way = "socket" if scope["server"][1] is None else "http"
        if self._streams.open[way] >= MOST:
            raise Rejection(
                Answer(
                    503,
                    f"{MOST} streams of events and logs are open already",
                    "too_many_streams",
                    headers=((b"retry-after", b"5"),),
                )
            )
        self._streams.open[way] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open[way] -= 1
