"""The requests that were answered last, and where they are written down. Never what was asked or answered.

On the way of a request there is one append to a list; what is made of it waits until the event loop has done
all that was at hand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from memoria.admin.api.replies import number
from memoria.admin.telemetry.exposition import Family, counter
from memoria.admin.telemetry.record import Record, make_record
from memoria.admin.telemetry.request_log import Done, RequestLog
from memoria.proxy.exchange.record import RequestRecord

KEPT = 500  # requests that can be looked at
MOST = 2**53 - 1


class Requests:
    """`log` None: they are not written down."""

    def __init__(self, log: RequestLog | None) -> None:
        self._log = log
        self._recent: deque[Done] = deque(maxlen=KEPT)
        self._new: list[Done] = []
        self._count = 0

    def add(self, record: RequestRecord) -> None:
        self._new.append((time.time(), record))
        if len(self._new) == 1:
            asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        new, self._new = self._new, []
        self._count += len(new)
        self._recent.extend(new)
        if self._log is not None and new:
            self._log.write(new)

    def after(self, number: int, limit: int) -> list[Record]:
        """The latest, oldest first. A number that has not come yet was another daemon's, so it is 0."""
        self._take()
        if number > self._count:
            number = 0
        first = self._count - len(self._recent) + 1
        skipped = max(0, number + 1 - first, len(self._recent) - limit)
        found = islice(enumerate(self._recent, first), skipped, None)
        return [make_record(each, at, over) for each, (at, over) in found]

    @property
    def not_logged(self) -> int:
        return 0 if self._log is None else self._log.dropped

    def families(self) -> tuple[Family, ...]:
        name, text = (
            "memoria_requests_not_logged_total",
            "Requests that the log was too slow, or too full, for.",
        )
        return (counter(name, text, [({}, self.not_logged)]),)

    def close(self) -> None:
        self._take()
        if self._log is not None:
            self._log.close()


def routes(requests: Requests) -> list[Route]:
    async def recent(request: Request) -> JSONResponse:
        after, limit = number(request, "after", 0, most=MOST), number(request, "limit", 100, most=KEPT)
        found = [made._asdict() for made in requests.after(after, limit)]
        return JSONResponse({"requests": found, "not_logged": requests.not_logged})

    return [Route("/requests", recent, methods=["GET"])]
