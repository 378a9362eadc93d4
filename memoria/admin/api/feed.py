"""Server-sent events (the HTML standard, 9.2): history first, then live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from memoria.admin.api.responses import MAX_NUMBER, Streams, bad_parameter, flag, number, to_json
from memoria.admin.status.history import History, Sample
from memoria.admin.status.status import Status
from memoria.engine.events import Data, Entry, EventKind, Journal
from memoria.engine.lifecycle import Tone

STATUS_INTERVAL = 2.0  # seconds between two statuses while nothing changes
MIN_INTERVAL = 0.2  # seconds between two statuses
HEARTBEAT = 10.0  # seconds; only a write finds out that the peer has gone


class ChangeSignal:
    """Wakes all waiters. `count` makes sure that a busy one misses no change."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def notify(self) -> None:
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout: float) -> bool:
        """Until `count` exceeds `seen`. False: not within `timeout` seconds."""
        if self.count > seen:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class JournalEvent(TypedDict):
    """One entry of the journal, as `Entry.to_json` (memoria/engine/events.py)."""

    number: int
    """Counts from 1, without gaps; also the event's id."""
    at: float
    """Unix time."""
    subject: str
    """An engine's name, or `memoria`."""
    kind: EventKind
    """For programs to match on. `transition`: `data` has the engine's new `state` and its `cause`."""
    data: Data
    """The facts of this kind."""
    what: str
    """In words: the state for a transition, else the kind."""
    detail: str
    text: str
    """`what` and `detail` as a sentence that follows the subject."""
    tone: Tone


class HistoryEvent(TypedDict):
    """At first the samples of the last five minutes, then each new one."""

    samples: list[Sample]


class _Latest(NamedTuple):
    """A status; when its collection began (monotonic), and the count of changes at that time."""

    began: float
    changes: int
    status: Status


class Feed:
    """`entered` signals every entry of the journal; `changed` also signals a change that only a status shows.
    `close` signals both and ends all streams."""

    def __init__(self, journal: Journal, collect: Callable[[], Awaitable[Status]], history: History) -> None:
        self.entered, self.changed, self.is_open = ChangeSignal(), ChangeSignal(), True
        self._journal, self._collect, self._history = journal, collect, history
        self._lock = asyncio.Lock()
        self._latest: _Latest | None = None
        journal.listen(lambda _: self._notify())

    def close(self) -> None:
        self.is_open = False
        self._notify()

    async def entries(self, after: int) -> AsyncIterator[str]:
        """Only entries of the journal."""
        after = self._known(after)
        while True:
            seen, is_open = self.entered.count, self.is_open
            for entry in self._journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            if not is_open:
                return
            if not await self.entered.wait(seen, HEARTBEAT):
                yield ": still here\n\n"

    async def updates(self, after: int, *, history: bool = False) -> AsyncIterator[str]:
        """Entries, and a status after every change and at least every `STATUS_INTERVAL`; with `history` also
        the samples of the last minutes and every new one, each before the status that is drawn with it."""
        after, sent, sampled = self._known(after), None, 0
        while True:
            seen, is_open = self.changed.count, self.is_open
            for entry in self._journal.after(after):
                after = entry.number
                yield _journal_event(entry)
            latest = await self._status(seen)
            if history and (samples := self._history.samples_after(sampled)):
                sampled = samples[-1].number
                yield _event("history", {"samples": samples})
            if latest is not sent:
                sent = latest
                yield _event("status", latest.status.to_json())
            if not is_open:
                return
            await self.changed.wait(latest.changes, latest.began + STATUS_INTERVAL - time.monotonic())

    def _notify(self) -> None:
        self.entered.notify()
        self.changed.notify()

    def _known(self, after: int) -> int:
        """A number not reached yet is from an earlier daemon: then the stream starts from the beginning."""
        return after if after <= self._journal.last else 0

    async def _status(self, seen: int) -> _Latest:
        """A status that includes the first `seen` changes and is no older than `STATUS_INTERVAL`. All streams
        share it, so that many collect no more often than one."""
        async with self._lock:
            latest = self._latest
            if latest is not None:
                age = time.monotonic() - latest.began
                if latest.changes >= seen and age < STATUS_INTERVAL:
                    return latest
                await asyncio.sleep(MIN_INTERVAL - age)
            began, changes = time.monotonic(), self.changed.count
            self._latest = _Latest(began, changes, await self._collect())
            return self._latest


def routes(feed: Feed, streams: Streams) -> list[Route]:
    async def events(request: Request) -> Response:
        after = number(request, "after", _last_seen(request), most=MAX_NUMBER)
        status, history = flag(request, "status", default=True), flag(request, "history")
        content = feed.updates(after, history=history) if status else feed.entries(after)
        return streams.response(content, "text/event-stream")

    return [Route("/events", events, methods=["GET"])]


def _last_seen(request: Request) -> int:
    """The number that a browser sends when it reconnects."""
    text = request.headers.get("last-event-id", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise bad_parameter("Last-Event-ID", "must be the number of an event")
    return int(text)


def _journal_event(entry: Entry) -> str:
    return f"id: {entry.number}\n{_event('journal', entry.to_json())}"


def _event(kind: str, data: object) -> str:
    return f"event: {kind}\ndata: {to_json(data).decode()}\n\n"
