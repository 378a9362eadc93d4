"""Room for bodies that must be whole first: shares, turns, and a bound."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.config.model import Hold
from memoria.proxy.admission.uploads import Kept, Uploads
from memoria.proxy.errors import Refusal
from tests.fakes import until

HOLD = Hold(bytes=100)


def begin(uploads: Uploads, client: str) -> Kept:
    return uploads.begin(client, lambda: None, lambda: None)


def grown(uploads: Uploads, client: str, size: int) -> Kept:
    kept = begin(uploads, client)
    kept.grow(size)
    return kept


async def test_within_the_limit_all_go_on() -> None:
    uploads = Uploads(HOLD)
    assert not any(grown(uploads, client, 25).is_paused for client in "aaab")


async def test_a_client_with_less_than_its_share_goes_on_where_another_has_taken_all() -> None:
    uploads = Uploads(HOLD)
    greedy = [grown(uploads, "greedy", 50) for _ in range(4)]
    assert [kept.is_paused for kept in greedy] == [False, False, False, True]  # the third has its turn
    modest = grown(uploads, "modest", 40)
    paused = [modest.is_paused]
    modest.grow(60)
    paused.append(modest.is_paused)
    for kept in greedy[:3]:
        kept.end()
        paused.append(modest.is_paused)
    assert paused == [False, True, True, True, False]  # 260, 210, 160 and 110 bytes are here


async def test_what_is_paused_is_told_once_and_told_again_when_there_is_room() -> None:
    uploads, told = Uploads(HOLD), []
    first, turn = grown(uploads, "a", 100), grown(uploads, "a", 1)
    paused = uploads.begin("a", lambda: told.append("pause"), lambda: told.append("resume"))
    paused.grow(1)
    paused.grow(2)  # was on its way
    assert told == ["pause"]
    assert turn.is_wanted
    first.end()
    first.end()
    assert told == ["pause", "resume"]
    assert not turn.is_wanted


async def test_beyond_the_shares_uploads_take_turns_the_least_served_and_smallest_first() -> None:
    uploads = Uploads(HOLD, turn_s=0.01)
    one, two = grown(uploads, "one", 60), grown(uploads, "two", 55)
    assert (one.is_paused, two.is_paused) == (False, False)  # two's turn
    one.grow(61)
    assert one.is_paused
    await until(lambda: not one.is_paused)
    two.grow(56)
    assert two.is_paused
    await until(lambda: not two.is_paused)


async def test_where_no_request_may_wait_there_is_no_pause() -> None:
    uploads = Uploads(Hold(bytes=100, seconds=0))
    large = grown(uploads, "a", 1000)  # alone it may be as large as bodies may be
    with pytest.raises(Refusal):
        grown(uploads, "a", 1)
    large.end()


async def test_a_pause_is_as_long_as_a_request_may_wait() -> None:
    uploads = Uploads(Hold(bytes=100, seconds=5))
    grown(uploads, "a", 101)
    kept = grown(uploads, "a", 1)
    assert kept.paused_at is not None
    assert not kept.is_paused_for_long(kept.paused_at + 4.9)
    assert kept.is_paused_for_long(kept.paused_at + 5)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=300),
    clients=st.lists(st.sampled_from("abc"), min_size=6, max_size=6),
)
def test_all_get_through_and_memory_is_bounded(steps: list[tuple[int, int]], clients: list[str]) -> None:
    """Bodies of 40 bytes, in whatever order their pieces come."""

    async def run() -> None:
        uploads = Uploads(HOLD, turn_s=0.0)
        open_ = {number: begin(uploads, client) for number, client in enumerate(clients)}
        most = 2 * HOLD.bytes + 40 + len(clients) * 9  # and a read of each that was on its way
        rounds = steps + [(n, 9) for n in range(6)] * 60
        for number, size in rounds:
            kept = open_.get(number)
            if kept is not None and not kept.is_paused:
                kept.grow(min(kept.size + size, 40))
                assert uploads._total <= most
                if kept.size == 40:
                    open_.pop(number).end()
            await asyncio.sleep(0)
        assert not open_
        assert uploads._total == 0

    asyncio.run(run())
