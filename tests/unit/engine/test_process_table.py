"""One look at /proc for all, in a thread, that nobody who is stuck can stop for good."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from memoria.engine.process.table import ProcessTable
from tests.fakes import until


class Box:
    """Processes and their environments; to read `stuck` takes until it is let go."""

    def __init__(self) -> None:
        self.environs: dict[int, bytes | None] = {}
        self.stuck: int | None = None
        self.let_go = threading.Event()
        self.reads = 0
        self.process_table = ProcessTable(timeout=0.05, processes=lambda: list(self.environs), read=self.read)

    def runs(self, pid: int, start: str) -> None:
        self.environs[pid] = b"A=1\0MEMORIA_START=" + start.encode() + b"\0B=2\0"

    def read(self, pid: int) -> bytes | None:
        self.reads += 1
        if pid == self.stuck:
            self.let_go.wait(10)
        return self.environs.get(pid)


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    made.runs(1, "a")
    made.runs(2, "b")
    made.runs(3, "a")
    made.environs[4] = None  # gone, or another user's
    yield made
    made.let_go.set()


async def test_processes_are_told_by_their_start(box: Box) -> None:
    assert await box.process_table.look() == {"a": {1, 3}, "b": {2}} == box.process_table.latest


async def test_whoever_asks_while_one_looks_shares_the_next_look(box: Box) -> None:
    await asyncio.gather(*(box.process_table.look() for _ in range(5)))
    assert box.reads == 2 * 4


async def test_a_look_that_was_begun_before_is_not_taken_for_what_is(box: Box) -> None:
    box.process_table = ProcessTable(processes=lambda: list(box.environs), read=box.read)
    box.stuck = 3
    earlier = asyncio.ensure_future(box.process_table.look())
    await until(lambda: box.reads == 3)
    box.environs[5] = box.environs[1]
    later = [asyncio.ensure_future(box.process_table.look()) for _ in range(2)]
    await asyncio.sleep(0)
    box.let_go.set()
    assert (await earlier)["a"] == {1, 3}
    assert [(await look)["a"] for look in later] == [{1, 3, 5}] * 2
    assert box.reads == 4 + 5


async def test_one_that_is_stuck_stops_one_look_and_is_then_what_it_was(box: Box) -> None:
    await box.process_table.look()
    box.stuck = 3
    with pytest.raises(TimeoutError, match="process 3 cannot be looked at"):
        await box.process_table.look()
    assert await box.process_table.look() == {"a": {1, 3}, "b": {2}}
    del box.environs[3]  # it has ended
    assert await box.process_table.look() == {"a": {1}, "b": {2}}


async def test_one_that_was_stuck_is_looked_at_again(box: Box) -> None:
    box.stuck = 3
    with pytest.raises(TimeoutError):
        await box.process_table.look()
    assert await box.process_table.look() == {"a": {1}, "b": {2}}
    box.let_go.set()
    async with asyncio.timeout(10):
        while len((await box.process_table.look())["a"]) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_for_want_of_descriptors_nobody_is_taken_for_gone(box: Box) -> None:
    def read(pid: int) -> bytes | None:
        raise OSError(24, "Too many open files")

    process_table = ProcessTable(processes=lambda: [1], read=read)
    with pytest.raises(OSError, match="Too many open files"):
        await process_table.look()
    assert process_table.latest == {}
