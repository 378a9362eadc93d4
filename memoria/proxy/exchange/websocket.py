"""A WebSocket: admitted like any request, then bytes both ways until one side ends.

Sources: RFC 6455 4 (handshake). Frames are not inspected; vLLM pings, so the engine notices a client that is
gone.
"""

from __future__ import annotations

import time

from memoria.proxy.exchange.context import Failure, Standstill
from memoria.proxy.exchange.exchange import OVER, Exchange
from memoria.proxy.upstream import Sink, Upstream

_EARLY_BYTES = 64 * 1024  # from a client before the engine's answer; more waits in its socket


class WebSocketExchange(Exchange):
    """A handshake, and the bytes that pass once the engine has agreed (101). Any other answer is relayed like
    that to a plain request. `upload.size`: bytes from the client after the handshake."""

    switches = True

    _opened = False
    _early: bytes = b""

    # From the client

    def start(self) -> None:
        self.upload.complete = True  # a handshake has no body
        super().start()

    def receive(self, piece: bytes) -> None:
        upstream = self._upstream
        if self._opened and upstream is not None:
            self.upload.size += len(piece)
            upstream.write(piece)
            if upstream.write_paused:
                self._client.pause_reading()
        elif self.state is not OVER:
            self._early += piece
            if len(self._early) > _EARLY_BYTES:
                self._client.pause_reading()

    def on_tick(self, now: float) -> None:
        """Once open, a WebSocket may be silent for as long as its ends like; only a client that takes nothing
        is limited."""
        if not self._opened:
            super().on_tick(now)
            return
        self._still = self._still or Standstill()
        client = self._client
        unsent = client.unsent if client.blocked else 0
        if self._still.lasts(now, unsent) >= self._context.client_idle and unsent:
            self._fail(Failure.READER_STALLED)

    def awaited_from(self, engine: str) -> Upstream | None:
        return None

    # From the engine

    def on_response_head(self, upstream: Upstream) -> Sink:
        head = upstream.head
        assert head is not None
        if head.status != 101:
            return super().on_response_head(upstream)
        self._head_at = time.monotonic()
        self._opened = True
        early, self._early = self._early, b""
        self.reply.switch(head)
        self.receive(early)
        self._client.resume_reading()
        return self

    def on_upstream_lost(self, upstream: Upstream) -> None:
        """An opened one ends as its engine pleases: frames tell whether they are complete."""
        if self._opened:
            self.on_response_end(upstream)
        else:
            super().on_upstream_lost(upstream)

    # Sink

    def send(self, piece: bytes) -> None:
        self._client.transport.write(piece)

    send_chunk = send

    def flush(self) -> None:
        """Nothing is kept back."""
