"""Notices that a client leaves while nothing is read from it: its socket is asked now and then.

A request that waits behind another one, or a body that cannot be passed on yet, stop the reading; the end of
the connection would come to light no sooner than that.
"""

from __future__ import annotations

import asyncio
import select

from uvicorn.protocols.http.flow_control import FlowControl

from memoria.proxy.downstream.watch import Watch

LOOK_S = 0.2  # seconds between two looks

_RESET = select.POLLERR | select.POLLHUP
_ENDED = select.POLLRDHUP  # also with bytes before it that were not read


class DisconnectMonitor(FlowControl):
    """uvicorn's flow control, for one connection. A client that has left is closed as it would be were it
    read from."""

    def __init__(self, transport: asyncio.Transport, watch: Watch[DisconnectMonitor]) -> None:
        super().__init__(transport)
        self._watch = watch

    def pause_reading(self) -> None:
        if not self.read_paused:
            super().pause_reading()
            self._watch.add(self)

    def resume_reading(self) -> None:
        if self.read_paused:
            super().resume_reading()
            self._watch.discard(self)

    def forget(self) -> None:
        """The connection is over."""
        self._watch.discard(self)

    def on_tick(self, now: float) -> None:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), _ENDED)
        for _, seen in poll.poll(0):
            if seen & _RESET:
                self._transport.abort()
            else:
                self._transport.close()
