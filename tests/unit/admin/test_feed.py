"""Streams of events: history first, then live, and never a loop without waiting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from memoria.admin.api import feed as feeding
from memoria.admin.api.feed import Feed
from memoria.admin.status.history import History
from memoria.admin.status.status import Status
from memoria.engine.events import EventKind, Journal
from tests.unit.status_examples import HEALTHY


class Looks:
    """Makes statuses numbered by their uptime, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    async def __call__(self) -> Status:
        self.made += 1
        await asyncio.sleep(0)
        return replace(HEALTHY, uptime=float(self.made))


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    for kind in (EventKind.LISTENING, EventKind.GATE_PASSED, EventKind.GATE_LEFT):
        journal.add_event(kind, "engine", device="gpu 0")
    return journal


@pytest.fixture
def feed(journal: Journal, looks: Looks) -> Feed:
    return Feed(journal, looks, History())


async def take(stream: AsyncIterator[str], count: int) -> list[str]:
    """The next `count` events, each as its kind and its number or uptime: `journal 3`, `status 1.0`."""
    async with asyncio.timeout(10):
        return [short(await anext(stream)) for _ in range(count)]


def short(event: str) -> str:
    if event.startswith(":"):
        return event.strip()
    if event.startswith("id: "):
        return f"journal {event.splitlines()[0].removeprefix('id: ')}"
    uptime = json.loads(event.partition("data: ")[2])["uptime"]
    return f"status {uptime}"


async def test_history_comes_first_from_where_the_client_was(feed: Feed) -> None:
    assert await take(feed.entries(0), 3) == ["journal 1", "journal 2", "journal 3"]
    assert await take(feed.entries(2), 1) == ["journal 3"]


@pytest.mark.parametrize("after", [4, 999_999, 2**53 - 1])
async def test_a_number_that_is_not_reached_yet_was_another_daemons(
    feed: Feed, journal: Journal, after: int
) -> None:
    stream = feed.entries(after)
    assert await take(stream, 3) == ["journal 1", "journal 2", "journal 3"]
    waiting = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0.01)  # the loop has its turn
    assert not waiting.done()
    journal.add_event(EventKind.STANDBY_WAITING, "engine")
    assert await waiting == ["journal 4"]


async def test_a_number_that_is_not_reached_yet_makes_no_flood_of_statuses(feed: Feed, looks: Looks) -> None:
    stream = feed.updates(999_999)
    assert await take(stream, 4) == ["journal 1", "journal 2", "journal 3", "status 1.0"]
    waiting = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert looks.made == 1
    waiting.cancel()


async def test_a_change_has_a_status_of_its_own(feed: Feed) -> None:
    stream = feed.updates(3)
    assert await take(stream, 1) == ["status 1.0"]
    feed.changed.notify()
    assert await take(stream, 1) == ["status 2.0"]


async def test_the_samples_come_before_the_statuses_where_they_are_wanted(
    journal: Journal, looks: Looks
) -> None:
    history = History()
    history.add_sample(HEALTHY)
    feed = Feed(journal, looks, history)
    stream = feed.updates(3, history=True)
    async with asyncio.timeout(10):
        kinds = [(await anext(stream)).splitlines()[0] for _ in range(2)]
    assert kinds == ["event: history", "event: status"]
    feed.changed.notify()
    assert await take(stream, 1) == ["status 2.0"]


async def test_many_streams_look_no_more_often_than_one(
    feed: Feed, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "STATUS_INTERVAL", 0.2)
    monkeypatch.setattr(feeding, "MIN_INTERVAL", 0.05)
    first = feed.updates(3)
    assert await take(first, 1) == ["status 1.0"]
    await asyncio.sleep(0.1)  # the others come in between
    others = [feed.updates(3) for _ in range(20)]
    for other in others:
        assert await take(other, 1) == ["status 1.0"]
    received = await asyncio.gather(*(take(stream, 3) for stream in (first, *others)))
    assert {tuple(events) for events in received} == {("status 2.0", "status 3.0", "status 4.0")}
    feed.changed.notify()
    received = await asyncio.gather(*(take(stream, 1) for stream in (first, *others)))
    assert {tuple(events) for events in received} == {("status 5.0",)}
    assert looks.made == 5


async def test_what_only_a_status_shows_keeps_no_heartbeat_away(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "HEARTBEAT", 0.1)
    stream = feed.entries(3)
    waiting = asyncio.create_task(take(stream, 1))
    for _ in range(20):  # an engine that loads: percents, and no entry
        feed.changed.notify()
        await asyncio.sleep(0.01)
    assert await waiting == [": still here"]


@pytest.mark.parametrize("statuses", [True, False])
async def test_the_last_entry_is_sent_before_a_stream_ends(
    feed: Feed, journal: Journal, statuses: bool
) -> None:
    stream = feed.updates(3) if statuses else feed.entries(2)
    await take(stream, 1)
    journal.add_event(EventKind.STOPPING, "memoria")
    feed.close()
    async with asyncio.timeout(10):
        rest = [short(event) async for event in stream]
    assert rest == (["journal 4", "status 2.0"] if statuses else ["journal 4"])
