"""A status of many engines is made in turns with other work."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

from memoria.admin.status.collect import Collector
from memoria.admin.status.memory_sampler import MemorySample
from tests.unit.status_examples import HEALTHY

ENGINES, WORK = 20, 0.002  # seconds that an engine's figures take, as its percentiles do under load


async def test_other_work_goes_on_between_the_engines_of_a_status() -> None:
    supervisor = SimpleNamespace(
        all_ready=lambda: False,
        listen=lambda _: None,
        actors=dict.fromkeys(map(str, range(ENGINES))),
        plan=SimpleNamespace(devices=()),
    )
    collector = Collector(
        cast(Any, supervisor), cast(Any, None), cast(Any, None), guarding=lambda: None, url=lambda: ""
    )

    def engine(name: str, *_: object) -> object:
        end = time.thread_time() + WORK
        while time.thread_time() < end:
            pass
        if name == "3":
            del supervisor.actors["7"]  # a reload
        return HEALTHY.engines[0]

    collector._engine = engine  # type: ignore[assignment,method-assign]
    making = asyncio.create_task(collector._status(MemorySample(), {}))
    served = 0
    while not making.done():
        await asyncio.sleep(0)
        served += 1
    assert len(making.result().engines) == ENGINES - 1
    assert served >= ENGINES - 1
