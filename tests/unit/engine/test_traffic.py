"""Requests in flight."""

from __future__ import annotations

import asyncio
import time

from memoria.engine.traffic import Traffic


async def test_an_engine_without_requests_is_idle() -> None:
    await Traffic().idle()


async def test_idle_waits_for_the_last_request() -> None:
    traffic = Traffic()
    traffic.began()
    traffic.began()
    idle = asyncio.create_task(traffic.idle())
    traffic.ended()
    await asyncio.sleep(0)
    assert not idle.done()
    traffic.ended()
    await idle
    assert (traffic.in_flight, traffic.total) == (0, 2)


async def test_a_new_request_ends_the_idling() -> None:
    traffic = Traffic()
    traffic.began()
    traffic.ended()
    traffic.began()
    idle = asyncio.create_task(traffic.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    assert repr(traffic) == "<Traffic in_flight=1 total=2>"
    traffic.ended()
    await idle


async def test_what_only_stays_open_is_finished_once_the_core_has_stood_still() -> None:
    traffic = Traffic()
    traffic.began()
    traffic.works_until = time.monotonic() + 0.1  # a request at work
    began = time.monotonic()
    await traffic.finished(0.05)
    assert 0.15 <= time.monotonic() - began < 5
    assert traffic.in_flight == 1


async def test_without_figures_of_the_core_only_the_end_counts() -> None:
    traffic = Traffic()
    traffic.began()
    finished = asyncio.create_task(traffic.finished(0.01))
    await asyncio.wait({finished}, timeout=0.1)
    assert not finished.done()
    traffic.ended()
    await finished
