"""What happens, as it happens: server-sent events (the HTML standard, 9.2), history first."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memoria.admin.api.replies import flag, number, wrong
from memoria.admin.api.streams import Streams
from memoria.admin.status.history import History
from memoria.admin.status.status import Status
from memoria.engine.events import Entry, Journal

EVERY = 2.0  # seconds between two statuses while nothing happens
AT_MOST_EVERY = 0.2
HEARTBEAT = 10.0  # seconds; a peer that is gone is found by writing to it
MOST = 2**53 - 1  # what JSON's readers hold exactly


class Bell:
    """Wakes everybody who waits for it. `rings` counts, so that no ring is missed by who was busy."""

    def __init__(self) -> None:
        self.rings = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        self.rings += 1
        self._event.set()
        self._event = asyncio.Event()

    async def rung(self, heard: int, patience: float) -> bool:
        """Once it has rung more than `heard` times. False: not in `patience` seconds."""
        if self.rings > heard:
            return True
        try:
            async with asyncio.timeout(patience):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class _Look(NamedTuple):
    """A status, when it was begun (monotonic), and how often the bell had rung by then."""

    began: float
    rings: int
    status: Status


class Feed:
    """`look` makes a status, `history` are samples of it. `told` rings with every entry of the journal,
    `changed` also when only a status would be another one; both for the last time when `close` ends all."""

    def __init__(self, journal: Journal, look: Callable[[], Awaitable[Status]], history: History) -> None:
        self.told, self.changed, self.is_open = Bell(), Bell(), True
        self._journal, self._make, self._history = journal, look, history
        self._lock = asyncio.Lock()
        self._latest: _Look | None = None
        journal.listen(lambda _: self._ring())

    def close(self) -> None:
        self.is_open = False
        self._ring()

    async def entries(self, after: int) -> AsyncIterator[str]:
        """Entries of the journal alone."""
        after = self._known(after)
        while True:
            heard, is_open = self.told.rings, self.is_open
            for entry in self._journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            if not is_open:
                return
            if not await self.told.rung(heard, HEARTBEAT):
                yield ": still here\n\n"

    async def all(self, after: int, *, history: bool = False) -> AsyncIterator[str]:
        """Entries, and a status whenever something has changed, every `EVERY` seconds at least; with
        `history` also the samples of the last minutes, then each that is added, before what is drawn with
        them."""
        after, shown, sampled = self._known(after), None, 0
        while True:
            heard, is_open = self.changed.rings, self.is_open
            for entry in self._journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            look = await self._look(heard)
            if history and (samples := self._history.after(sampled)):
                sampled = samples[-1].number
                yield _event("history", {"samples": [sample.to_json() for sample in samples]})
            if look is not shown:
                shown = look
                yield _event("status", look.status.to_json())
            if not is_open:
                return
            await self.changed.rung(look.rings, look.began + EVERY - time.monotonic())

    def _ring(self) -> None:
        self.told.ring()
        self.changed.ring()

    def _known(self, after: int) -> int:
        """An entry that has not come yet was another daemon's: then everything is told from the beginning."""
        return after if after <= self._journal.last else 0

    async def _look(self, heard: int) -> _Look:
        """One that shows what the bell rang for `heard` times, and is no older than `EVERY`. Everybody who
        waits gets the same, so that many streams look no more often than one."""
        async with self._lock:
            latest = self._latest
            if latest is not None:
                age = time.monotonic() - latest.began
                if latest.rings >= heard and age < EVERY:
                    return latest
                await asyncio.sleep(AT_MOST_EVERY - age)
            began, rings = time.monotonic(), self.changed.rings
            self._latest = _Look(began, rings, await self._make())
            return self._latest


def routes(feed: Feed, streams: Streams) -> list[Route]:
    async def events(request: Request) -> Response:
        after = number(request, "after", _last_seen(request), most=MOST)
        status, history = flag(request, "status", default=True), flag(request, "history")
        content = feed.all(after, history=history) if status else feed.entries(after)
        return streams.response(content, "text/event-stream")

    return [Route("/events", events, methods=["GET"])]


def _last_seen(request: Request) -> int:
    """What a browser sends when it comes back."""
    text = request.headers.get("last-event-id", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise wrong("Last-Event-ID", "must be the number of an event")
    return int(text)


def _journal_event(entry: Entry) -> str:
    return f"id: {entry.number}\n{_event('journal', entry.to_json())}"


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
