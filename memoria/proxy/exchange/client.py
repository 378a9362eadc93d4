"""What a transfer asks of the connection its request came by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from memoria.proxy.exchange.exchange import Exchange
    from memoria.proxy.exchange.websocket import WebSocketExchange


class Client(Protocol):
    """`port` is the one it came by, `peer` its address."""

    transport: asyncio.Transport
    port: int
    peer: str

    @property
    def blocked(self) -> bool:
        """It has been sent more than it takes."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def on_answered(self, exchange: Exchange | WebSocketExchange) -> None:
        """Its response is complete."""

    def on_cut(self, exchange: Exchange | WebSocketExchange) -> None:
        """Its response will never be complete, and that must show."""
