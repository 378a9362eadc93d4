"""Getting one start of an engine off the ground: its process, its log, its passenger at the gate."""

from __future__ import annotations

import asyncio
import os
import time
import uuid

from memoria.engine.host import EngineHost
from memoria.engine.log.file import LogFile
from memoria.engine.process.process import EngineProcess
from memoria.engine.start import Start


async def launch(start: Start, around: EngineHost, log: LogFile) -> None:
    """Spawns the engine's process and fills in `start`. Raises `MemoriaError` or `OSError`."""
    await asyncio.to_thread(log.rotate_if_large)
    await around.check_address()
    # from here to the end nothing waits: whoever is cancelled has spawned nothing
    start.id = uuid.uuid4().hex[:12]
    start.boarding = around.expect(start.id)
    spec = around.spec(start.id)
    descriptor = log.open()
    try:
        start.log_from = log.size()
        start.follower = log.follow()
        start.address = spec.address
        start.process = EngineProcess.spawn(
            spec.argv, spec.env, start_id=start.id, log=descriptor, census=around.census
        )
    finally:
        os.close(descriptor)
    around.spawned(start.id, start.process.pid)
    start.spawned_at = time.monotonic()


async def reaches_gate(start: Start) -> bool:
    """Waits until the engine core is held at the gate. False: it went on by itself, no passenger holds it."""
    assert start.boarding is not None
    arrived = asyncio.ensure_future(start.boarding.at_gate.wait())
    slipped = asyncio.ensure_future(start.slipped_through.wait())
    try:
        await asyncio.wait({arrived, slipped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        arrived.cancel()
        slipped.cancel()
    return start.boarding.at_gate.is_set()
