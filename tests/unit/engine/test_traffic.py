"""Requests in flight."""

from __future__ import annotations

import asyncio

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
