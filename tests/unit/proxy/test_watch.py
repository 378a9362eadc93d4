from __future__ import annotations

import asyncio
import logging

import pytest

from memoria.proxy.exchange.context import SLICE, Standstill, Watch


class Counting:
    def __init__(self, *, fails: bool = False) -> None:
        self.ticks, self._fails = 0, fails
        self.seen = asyncio.Event()

    def on_tick(self, now: float) -> None:
        self.ticks += 1
        self.seen.set()
        if self._fails:
            raise RuntimeError("no")


def test_one_that_fails_does_not_stop_the_others_clock(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        watch: Watch[Counting] = Watch(0.001)
        failing, other = Counting(fails=True), Counting()
        watch.add(failing)
        watch.add(other)
        for _ in range(3):
            other.seen.clear()
            await other.seen.wait()
        assert failing.ticks >= 2
        assert set(watch) == {failing, other}
        watch.discard(failing)
        watch.discard(other)

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), 10))
    assert caplog.records


def test_a_standstill_lasts_from_when_it_was_first_seen() -> None:
    still = Standstill()
    assert [still.lasts(now, seen) for now, seen in ((5.0, 1), (6.0, 1), (8.0, 1), (9.0, 2), (9.5, 2))] == [
        0.0,
        1.0,
        3.0,
        0.0,
        0.5,
    ]


async def test_a_tick_over_thousands_lets_others_run_in_between() -> None:
    seen: list[int] = []
    others: list[int] = []
    ended = asyncio.Event()

    class Client:
        def __init__(self, number: int) -> None:
            self.number = number

        def on_tick(self, now: float) -> None:
            if not seen:
                asyncio.get_running_loop().call_soon(lambda: others.append(len(seen)))
                watch.discard(gone)
            seen.append(self.number)
            if len(seen) == len(clients) - 1:
                ended.set()

    watch: Watch[Client] = Watch(0.001)
    clients = [Client(number) for number in range(5 * SLICE)]
    for client in clients:
        watch.add(client)
    gone = tuple(watch)[-1]
    async with asyncio.timeout(10):
        await ended.wait()
    for client in clients:
        watch.discard(client)
    assert others == [SLICE]
    assert sorted([*seen, gone.number]) == list(range(5 * SLICE))
