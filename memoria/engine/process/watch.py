"""One engine's process seen from outside: its log while it lives, its exit, and what the kernel killed for
memory meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from memoria.aio import in_daemon_thread
from memoria.engine.log import Follower, LogFile
from memoria.engine.process.process import EngineProcess
from memoria.vllm.facts import ExitStatus

logger = logging.getLogger(__name__)

CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")
TURN = 0.002  # seconds of work on lines before the loop's other tasks run
LINES = 500  # in memory at once
LAST_READ = 5.0  # seconds for what it wrote last


async def watch(
    process: EngineProcess,
    log: LogFile,
    follower: Follower,
    on_line: Callable[[str], None],
    pause: Callable[[], float],
) -> ExitStatus:
    """Pass each new line to `on_line`, reading every `pause()` seconds, and rotate the log. Returns how the
    process ended, whatever happens to the log: its disk may hang."""
    exited = asyncio.ensure_future(process.exited())
    look = asyncio.ensure_future(_look(log, follower, on_line))
    trouble = ""
    try:
        while not exited.done():
            await asyncio.wait({look, exited}, return_when=asyncio.FIRST_COMPLETED)
            if not look.done():
                break
            error = look.exception()  # out of descriptors, say: the next look may have one
            if error is not None and repr(error) != trouble:
                logger.error("%s cannot be read", log.path, exc_info=error)
            trouble = repr(error)
            await asyncio.wait({exited}, timeout=pause())
            if not exited.done():
                look = asyncio.ensure_future(_look(log, follower, on_line))
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LAST_READ):
                await asyncio.wait({look})
                await _read(follower, on_line)
    finally:
        exited.cancel()
        look.cancel()
    return await process.exited()


async def _look(log: LogFile, follower: Follower, on_line: Callable[[str], None]) -> None:
    await _read(follower, on_line)
    await in_daemon_thread(log.rotate_if_large)


async def _read(follower: Follower, on_line: Callable[[str], None]) -> None:
    """Yields to the loop now and then: a flood of lines takes tens of milliseconds."""
    turn_ends = time.perf_counter() + TURN
    lines = follower.new_lines()
    while some := await in_daemon_thread(lambda: [*islice(lines, LINES)]):
        for line in some:
            on_line(line)
            if time.perf_counter() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.perf_counter() + TURN


@dataclass(frozen=True, slots=True)
class OomKills:
    """How many processes the kernel has killed to free memory: in memoria's cgroup, engines among them, and
    on the whole machine. None where it does not say."""

    cgroup: int | None
    machine: int | None

    def hit_since(self, before: OomKills) -> bool | None:
        """Whether one of memoria's processes was killed since; None where that cannot be known: the machine's
        counter also counts other cgroups' processes."""
        risen = [
            now > then
            for now, then in ((self.cgroup, before.cgroup), (self.machine, before.machine))
            if now is not None and then is not None
        ]
        if self.cgroup is not None and before.cgroup is not None and self.cgroup > before.cgroup:
            return True
        return None if not risen or any(risen) else False


def oom_kills(cgroup: Path = CGROUP, mount: Path = MOUNT, vmstat: Path = VMSTAT) -> OomKills:
    """As the kernel's files have it now."""
    return OomKills(_of_cgroup(cgroup, mount), _count(vmstat))


def _of_cgroup(cgroup: Path, mount: Path) -> int | None:
    """cgroup v2: `oom_kill` in memory.events; v1: in memory.oom_control
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
