"""Watching one engine process from outside: its log while it lives, then how it ended."""

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

TURN = 0.002  # seconds of reading until others have theirs


async def watch(
    process: EngineProcess,
    log: LogFile,
    follower: Follower,
    on_line: Callable[[str], None],
    pause: Callable[[], float],
) -> ExitStatus:
    """Gives each new line to `on_line`, looking every `pause()` seconds, and keeps the log small.
    Whatever becomes of the log, the end of the process is told."""
    exited = asyncio.ensure_future(process.exited())
    trouble = ""
    try:
        while not exited.done():
            try:
                await _read(follower, on_line)
                if log.is_large:
                    await asyncio.to_thread(log.rotate_if_large)  # copies all of it
                trouble = ""
            except Exception as error:  # for want of a descriptor, say: the next round may have one
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
    """Requests have their turn in between: a flood of lines takes tens of milliseconds."""
    turn_ends = time.perf_counter() + TURN
    for line in follower.new_lines():
        on_line(line)
        if time.perf_counter() >= turn_ends:
            await asyncio.sleep(0)
            turn_ends = time.perf_counter() + TURN
