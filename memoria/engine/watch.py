"""Watching one engine process from outside: its log while it lives, then how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from memoria.engine.exit_status import ExitStatus
from memoria.engine.log_reader import Follower
from memoria.engine.logfile import LogFile
from memoria.engine.process import EngineProcess

logger = logging.getLogger(__name__)


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
    try:
        while not exited.done():
            _read(follower, on_line)
            log.rotate_if_large()
            await asyncio.wait({exited}, timeout=pause())
        _read(follower, on_line)
    except Exception:
        logger.exception("%s is not read any more", log.path)
    finally:
        exited.cancel()
    return await process.exited()


def _read(follower: Follower, on_line: Callable[[str], None]) -> None:
    for line in follower.new_lines():
        on_line(line)
