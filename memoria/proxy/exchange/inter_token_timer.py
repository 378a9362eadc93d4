"""How far apart an engine's tokens come: what the latency guard sees of one stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from memoria.proxy.upstream.connection import Sink, Upstream

ANNOUNCED = (
    2  # reads at a stream's begin that may hold no token: vLLM says what it will do before the prefill
)


class InterTokenTimer:
    """Takes a stream's pieces in its sink's place and tells `observe` the seconds between two reads, whatever
    number of events one of them brings. Left out are the stream's first reads, and a gap in which nothing was
    read for the client's sake."""

    __slots__ = ("_before", "_observe", "_pauses", "_reads", "_seen", "_sink", "_upstream")

    def __init__(self, upstream: Upstream, sink: Sink, observe: Callable[[float], None]) -> None:
        self._upstream, self._sink, self._observe = upstream, sink, observe
        self._before = 0.0
        self._pauses = self._reads = self._seen = 0

    def send(self, piece: bytes) -> None:
        self._look()
        self._sink.send(piece)

    def send_chunk(self, framed: bytes) -> None:
        self._look()
        self._sink.send_chunk(framed)

    def _look(self) -> None:
        upstream = self._upstream
        if upstream.reads != self._reads:
            now = time.monotonic()
            if self._seen >= ANNOUNCED and upstream.pauses == self._pauses:
                self._observe(now - self._before)
            self._seen += 1
            self._reads, self._pauses, self._before = upstream.reads, upstream.pauses, now
