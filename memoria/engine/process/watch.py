"""Watching one engine's process from outside: its log while it lives, then how it ended, and whether the
kernel killed for memory meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from memoria.engine.log import Follower, LogFile
from memoria.engine.process.exit_status import ExitStatus
from memoria.engine.process.process import EngineProcess

logger = logging.getLogger(__name__)

CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
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


def oom_kills(cgroup: Path = CGROUP, mount: Path = MOUNT) -> int | None:
    """How many processes of memoria's cgroup, engines among them, the kernel has killed to free memory; None
    where it does not say. cgroup v2: `oom_kill` in memory.events; v1: in memory.oom_control
    (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst)."""
    try:
        places = [line.split(":", 2) for line in cgroup.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    for _, controllers, path in (place for place in places if len(place) == 3):
        inside = path.lstrip("/")
        if controllers == "" and (found := _count(mount / inside / "memory.events")) is not None:
            return found
        if "memory" in controllers.split(","):
            for folder in (mount / "memory" / inside, mount / "memory"):
                if (found := _count(folder / "memory.oom_control")) is not None:
                    return found
    return None


def _count(file: Path) -> int | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for name, _, value in (line.partition(" ") for line in lines):
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return None
