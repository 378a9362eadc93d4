"""What happens, as it happens: server-sent events (the HTML standard, 9.2), history first."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from memoria.admin.collect import Collector
from memoria.admin.history import History
from memoria.admin.replies import flag, number, wrong
from memoria.admin.status import Status
from memoria.engine.journal import Entry, Journal
from memoria.supervisor.supervisor import Supervisor

EVERY = 2.0  # seconds between two statuses while nothing happens
AT_MOST_EVERY = 0.2
HEARTBEAT = 10.0  # seconds; a peer that is gone is found by writing to it
MOST = 2**53 - 1  # what JSON's readers hold exactly
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Bell:
    """Wakes everybody who waits for it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def rung(self, patience: float) -> bool:
        """False: not in `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Feed:
    """`bell` rings with every change, and for the last time when `close` ends all streams."""

    def __init__(
        self, supervisor: Supervisor, journal: Journal, collector: Collector, history: History
    ) -> None:
        self.journal, self.bell, self.is_open = journal, Bell(), True
        self._collector, self._history = collector, history
        self._lock = asyncio.Lock()
        self._latest: tuple[float, Status] | None = None
        journal.listen(lambda _: self.bell.ring())
        supervisor.listen(lambda _: self.bell.ring())

    def close(self) -> None:
        self.is_open = False
        self.bell.ring()

    async def status(self, since: float) -> Status:
        """One that was begun no earlier than `since` (monotonic); everybody who waits gets the same."""
        async with self._lock:
            if self._latest is None or self._latest[0] < since:
                began = time.monotonic()
                self._latest = began, await self._collector.status()
            return self._latest[1]

    async def entries(self, after: int) -> AsyncIterator[str]:
        """Entries of the journal alone."""
        while True:
            for entry in self.journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            if not self.is_open:
                return
            if self.journal.last == after and not await self.bell.rung(HEARTBEAT):
                yield ": still here\n\n"

    async def all(self, after: int, *, history: bool = False) -> AsyncIterator[str]:
        """Entries, and a status whenever something has changed, every `EVERY` seconds at least; with
        `history` also the samples of the last minutes, then each that is added."""
        sampled = 0
        while True:
            for entry in self.journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            began = time.monotonic()
            yield _event("status", (await self.status(began)).to_json())
            if history and (samples := self._history.after(sampled)):
                sampled = samples[-1].number
                yield _event("history", {"samples": [sample.to_json() for sample in samples]})
            if not self.is_open:
                return
            await asyncio.sleep(AT_MOST_EVERY)
            if self.journal.last == after:
                await self.bell.rung(EVERY)


def routes(feed: Feed) -> list[Route]:
    async def events(request: Request) -> StreamingResponse:
        after = number(request, "after", _last_seen(request), most=MOST)
        status, history = flag(request, "status", default=True), flag(request, "history")
        stream = feed.all(after, history=history) if status else feed.entries(after)
        return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)

    return [Route("/events", events, methods=["GET"])]


def _last_seen(request: Request) -> int:
    """What a browser sends when it comes back."""
    text = request.headers.get("last-event-id", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise wrong("Last-Event-ID", "must be the number of an event")
    return int(text)


def _journal_event(entry: Entry) -> str:
    data = asdict(entry)
    del data["monotonic"]
    return f"id: {entry.number}\n{_event('journal', data)}"


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
