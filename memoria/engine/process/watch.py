"""Watching one engine's process from outside: its log while it lives, then how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from memoria.engine.log.file import LogFile
from memoria.engine.log.reader import Follower
from memoria.engine.process.exit_status import ExitStatus
from memoria.engine.process.process import EngineProcess

logger = logging.getLogger(__name__)

TURN = 0.002  # seconds of reading before the loop's other tasks run


async def watch(
    process: EngineProcess,
    log: LogFile,
    follower: Follower,
    on_line: Callable[[str], None],
    pause: Callable[[], float],
) -> ExitStatus:
    """Pass each new line to `on_line`, looking every `pause()` seconds, and keep the log small. Returns the
    process's exit, whatever becomes of the log."""
    exited = asyncio.ensure_future(process.exited())
    trouble = ""
    try:
        while not exited.done():
            try:
                await _read(follower, on_line)
                if log.is_large:
                    await asyncio.to_thread(log.rotate_if_large)  # copies all of it
                trouble = ""
            except Exception as error:  # out of descriptors, say: the next round may have one
                if repr(error) != trouble:
                    trouble = repr(error)
                    logger.exception("%s cannot be read", log.path)
            await asyncio.wait({exited}, timeout=pause())
        with contextlib.suppress(Exception):
            await _read(follower, on_line)
    finally:
        exited.cancel()
    return await process.exited()


async def _read(follower: Follower, on_line: Callable[[str], None]) -> None:
    """Yields to the loop in between: a flood of lines takes tens of milliseconds."""
    turn_ends = time.perf_counter() + TURN
    for line in follower.new_lines():
        on_line(line)
        if time.perf_counter() >= turn_ends:
            await asyncio.sleep(0)
            turn_ends = time.perf_counter() + TURN
