"""Device memory read off the loop, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from memoria.aio import in_daemon_thread
from memoria.errors import UnavailableError
from memoria.gpu.device import Device, DeviceProcess
from memoria.supervisor import device_memory
from memoria.supervisor.device_memory import DeviceMemory
from tests.fakes import FakeReader, device

GONE = UnavailableError("the driver is gone")


@pytest.fixture(autouse=True)
def _quick_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "BETWEEN_READINGS", 0.001)


@pytest.fixture
def hanging() -> Iterator[FakeReader]:
    reader = FakeReader(device(1))
    reader.block()
    yield reader
    reader.unblock()


def held_by(pid: int, used_gib: float = 40) -> Device:
    return replace(device(used_gib), processes=(DeviceProcess(pid, None, None, None),))


async def no_process() -> list[int]:
    return []


async def readings_until_released(reader: FakeReader, *alive: list[int]) -> int:
    """How many readings it took; `alive` as the tree is seen from reading to reading, then empty."""
    seen = iter(alive)

    async def look() -> list[int]:
        return next(seen, [])

    async with asyncio.timeout(10):
        await DeviceMemory(reader, 0).until_released(look)
    return reader.calls


async def test_a_reading_is_kept_as_the_latest() -> None:
    watched = DeviceMemory(FakeReader(device(3)), 0)
    assert watched.latest is None
    assert await watched.read() == device(3) == watched.latest


async def test_a_driver_that_fails_is_an_error_of_its_own_kind() -> None:
    with pytest.raises(UnavailableError, match="the driver is gone"):
        await DeviceMemory(FakeReader(GONE), 0).read()


async def test_a_driver_that_hangs_is_reported_and_not_read_a_second_time(hanging: FakeReader) -> None:
    watched = DeviceMemory(hanging, 0, timeout=0.01)
    for _ in range(3):
        with pytest.raises(UnavailableError, match=r"has not answered for 0\.01 s"):
            await watched.read()
    assert hanging.calls == 1


async def test_a_driver_that_comes_back_is_read_again(hanging: FakeReader) -> None:
    watched = DeviceMemory(hanging, 0, timeout=0.01)
    with pytest.raises(UnavailableError):
        await watched.read()
    hanging.unblock()
    async with asyncio.timeout(10):
        while watched.latest is None:
            try:
                await watched.read()
            except UnavailableError:
                continue
    assert watched.latest == device(1)


async def test_a_late_failure_without_a_waiter_is_not_logged(
    hanging: FakeReader, caplog: pytest.LogCaptureFixture
) -> None:
    reading = in_daemon_thread(lambda: hanging.snapshot(0))
    hanging.answers = [GONE]
    hanging.unblock()
    await asyncio.wait({reading})
    del reading
    assert caplog.records == []


async def test_readers_at_the_same_time_share_one_reading(hanging: FakeReader) -> None:
    watched = DeviceMemory(hanging, 0)
    both = asyncio.gather(watched.read(), watched.read())
    await asyncio.sleep(0)
    hanging.unblock()
    first, second = await both
    assert first == second == device(1)
    assert hanging.calls == 1


async def test_memory_is_released_when_two_readings_agree() -> None:
    reader = FakeReader(device(40), device(20), device(0.5), device(0.5), device(7))
    assert await readings_until_released(reader) == 4


async def test_nothing_is_released_while_a_process_lives() -> None:
    assert await readings_until_released(FakeReader(device(1)), [10, 11], [11], [11]) == 5


async def test_nothing_is_released_while_the_driver_names_one_of_the_processes() -> None:
    reader = FakeReader(held_by(10), held_by(10), held_by(10), held_by(99, 1))
    assert await readings_until_released(reader, [10]) == 5


async def test_nothing_is_released_while_the_driver_names_one_that_is_dead_already() -> None:
    reader = FakeReader(held_by(10), held_by(10), held_by(99, 1))
    async with asyncio.timeout(10):
        await DeviceMemory(reader, 0).until_released(no_process, known={10})
    assert reader.calls == 4


async def test_processes_that_cannot_be_looked_at_prolong_the_wait() -> None:
    reader, looks = FakeReader(device(1)), iter([OSError("too many open files"), None, None])

    async def look() -> list[int]:
        if (error := next(looks)) is not None:
            raise error
        return []

    async with asyncio.timeout(10):
        await DeviceMemory(reader, 0).until_released(look)
    assert reader.calls == 2


async def test_failing_readings_prolong_the_wait() -> None:
    reader = FakeReader(device(1), GONE, device(1), GONE, device(1), device(1))
    assert await readings_until_released(reader) == 6


async def test_on_a_host_the_end_of_the_processes_is_enough() -> None:
    host = [device(used, is_host=True) for used in (10, 20, 30)]
    assert await readings_until_released(FakeReader(*host), [10]) == 2
