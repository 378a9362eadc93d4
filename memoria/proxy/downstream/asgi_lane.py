"""uvicorn's part: requests that memoria answers itself take its way through ASGI, under the proxy's access
rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from memoria.proxy.access.rules import Grant
from memoria.proxy.http.messages import Header, new_request_id
from memoria.proxy.http.request import RequestHead


class AsgiLane(HttpToolsProtocol):
    """`_own`: the latest request that was started this way."""

    _own: RequestResponseCycle | None = None

    def begin_own(
        self, head: RequestHead, grant: Grant, url: bytes, headers: Sequence[Header], lengths: Sequence[bytes]
    ) -> None:
        """Hands a complete, checked head to uvicorn, as if its parser had just read it."""
        super().on_message_begin()
        super().on_url(url)
        for name, value in (*headers, *((b"content-length", length) for length in lengths)):
            super().on_header(name, value)
        super().on_headers_complete()
        cycle: Any = self.cycle
        assert isinstance(cycle, RequestResponseCycle)
        cycle.keep_alive = head.keep_alive
        identity = (b"x-request-id", head.own_id or new_request_id())
        cycle.default_headers = [*cycle.default_headers, identity, *grant.headers]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._own = cycle
        super()._start_asgi_task(cycle, app)

    def disconnect_own(self) -> bool:
        """Tells the application that its client is gone. True: nothing was sent."""
        cycle = self._own
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return not cycle.response_started

    def connection_lost(self, exc: Exception | None) -> None:
        self.disconnect_own()
        super().connection_lost(exc)
