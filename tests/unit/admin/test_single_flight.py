"""Asking somebody who may hang."""

from __future__ import annotations

import asyncio

import pytest

from memoria.admin.status.single_flight import SingleFlight


class Oracle:
    """Answers with a number of its own for every question, once it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = 0

    async def __call__(self) -> int:
        self.asked += 1
        answer = self.asked
        await self.may_answer.wait()
        return answer


async def test_each_question_is_answered_anew() -> None:
    oracle = Oracle()
    oracle.may_answer.set()
    question = SingleFlight(oracle)
    assert [await question.answer(), await question.answer()] == [1, 2]


async def test_all_who_ask_meanwhile_share_one_question() -> None:
    oracle = Oracle()
    question = SingleFlight(oracle)
    asking = [asyncio.create_task(question.answer()) for _ in range(3)]
    await asyncio.sleep(0)
    oracle.may_answer.set()
    assert [await task for task in asking] == [1, 1, 1]


async def test_whoever_hangs_is_waited_for_once() -> None:
    oracle = Oracle()
    question = SingleFlight(oracle, timeout=0.01, retry_timeout=0.0)
    assert await question.answer() is None
    question._timeout = 1000.0
    assert await asyncio.wait_for(question.answer(), 30) is None
    assert oracle.asked == 1


async def test_one_that_answers_again_is_waited_for_again() -> None:
    oracle = Oracle()
    question = SingleFlight(oracle, timeout=0.01, retry_timeout=0.0)
    assert await question.answer() is None
    oracle.may_answer.set()
    late = question._running
    assert late is not None
    await late
    await asyncio.sleep(0)
    question._timeout = 1000.0
    assert await question.answer() == 2


async def test_a_failure_is_raised_and_the_next_question_is_a_new_one() -> None:
    calls: list[int] = []

    async def fail() -> int:
        calls.append(1)
        raise ConnectionError

    question = SingleFlight(fail)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await question.answer()
    assert len(calls) == 2


async def test_who_is_in_a_hurry_waits_for_the_first_answer() -> None:
    oracle = Oracle()
    question = SingleFlight(oracle, timeout=1000.0, hurry_timeout=0.0)
    asking = asyncio.create_task(question.answer(hurry=True))
    await asyncio.sleep(0)
    assert not question.has_answered
    oracle.may_answer.set()
    assert await asking == 1
    assert question.has_answered


async def test_who_is_in_a_hurry_waits_no_longer_than_usual_for_the_next_one() -> None:
    oracle = Oracle()
    oracle.may_answer.set()
    question = SingleFlight(oracle, timeout=1000.0, hurry_timeout=0.01)
    assert await question.answer() == 1
    oracle.may_answer.clear()
    assert await asyncio.wait_for(question.answer(hurry=True), 30) is None


async def test_a_slow_answer_is_waited_for_as_long_the_next_time() -> None:
    question = SingleFlight(Oracle(), timeout=1.0, hurry_timeout=0.03)
    for took, limit in ((0.001, 0.03), (0.1, 0.2), (30.0, 1.0)):
        question._took = took
        assert question._limit(hurry=True) == limit
        assert question._limit(hurry=False) == 1.0


async def test_a_hurry_makes_nobody_else_impatient() -> None:
    oracle = Oracle()
    question = SingleFlight(oracle, timeout=1000.0, hurry_timeout=0.0, retry_timeout=0.0)
    oracle.may_answer.set()
    assert await question.answer() == 1
    oracle.may_answer.clear()
    assert await question.answer(hurry=True) is None
    asking = asyncio.create_task(question.answer())
    await asyncio.sleep(0)  # it has asked
    oracle.may_answer.set()
    assert await asking == 2
