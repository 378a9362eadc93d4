"""One call at a time to something that may hang."""

from __future__ import annotations

import asyncio

import pytest

from memoria.aio import SingleFlight


class Engine:
    """Answers each call with its number, once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        answer = self.calls
        await self.may_answer.wait()
        return answer


async def test_each_call_has_an_answer_of_its_own() -> None:
    engine = Engine()
    engine.may_answer.set()
    flight = SingleFlight(engine)
    assert [await flight.answer(), await flight.answer()] == [1, 2]


async def test_concurrent_callers_share_one_call() -> None:
    engine = Engine()
    flight = SingleFlight(engine)
    asking = [asyncio.create_task(flight.answer()) for _ in range(3)]
    await asyncio.sleep(0)
    engine.may_answer.set()
    assert [await task for task in asking] == [1, 1, 1]


async def test_one_that_hangs_is_waited_for_once() -> None:
    engine = Engine()
    flight = SingleFlight(engine, timeout=0.01, retry_timeout=0.0)
    assert await flight.answer() is None
    flight._timeout = 1000.0
    assert await asyncio.wait_for(flight.answer(), 30) is None
    assert engine.calls == 1


async def test_one_that_answers_again_is_waited_for_again() -> None:
    engine = Engine()
    flight = SingleFlight(engine, timeout=0.01, retry_timeout=0.0)
    assert await flight.answer() is None
    engine.may_answer.set()
    late = flight._running
    assert late is not None
    await late
    await asyncio.sleep(0)
    flight._timeout = 1000.0
    assert await flight.answer() == 2


async def test_a_failure_is_raised_and_the_next_call_is_a_new_one() -> None:
    calls: list[int] = []

    async def fail() -> int:
        calls.append(1)
        raise ConnectionError

    flight = SingleFlight(fail)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await flight.answer()
    assert len(calls) == 2


async def test_a_caller_in_a_hurry_waits_for_the_first_answer() -> None:
    engine = Engine()
    flight = SingleFlight(engine, timeout=1000.0, hurry_timeout=0.0)
    asking = asyncio.create_task(flight.answer(hurry=True))
    await asyncio.sleep(0)
    assert not flight.has_answered
    engine.may_answer.set()
    assert await asking == 1
    assert flight.has_answered


async def test_a_caller_in_a_hurry_waits_no_longer_than_usual_for_the_next_one() -> None:
    engine = Engine()
    engine.may_answer.set()
    flight = SingleFlight(engine, timeout=1000.0, hurry_timeout=0.01)
    assert await flight.answer() == 1
    engine.may_answer.clear()
    assert await asyncio.wait_for(flight.answer(hurry=True), 30) is None


async def test_a_slow_answer_is_waited_for_as_long_the_next_time() -> None:
    flight = SingleFlight(Engine(), timeout=1.0, hurry_timeout=0.03)
    for took, limit in ((0.001, 0.03), (0.1, 0.2), (30.0, 1.0)):
        flight._took = took
        assert flight._limit(hurry=True) == limit
        assert flight._limit(hurry=False) == 1.0


async def test_a_hurry_shortens_no_other_wait() -> None:
    engine = Engine()
    flight = SingleFlight(engine, timeout=1000.0, hurry_timeout=0.0, retry_timeout=0.0)
    engine.may_answer.set()
    assert await flight.answer() == 1
    engine.may_answer.clear()
    assert await flight.answer(hurry=True) is None
    asking = asyncio.create_task(flight.answer())
    await asyncio.sleep(0)  # it has called
    engine.may_answer.set()
    assert await asking == 2
