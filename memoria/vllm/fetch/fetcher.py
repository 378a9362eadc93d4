"""Fetches in processes of their own, so many at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from memoria.vllm.facts import FetchProgress
from memoria.vllm.fetch.launch import child_command, child_environ, fetch_error
from memoria.vllm.fetch.repository import Repository, is_here, is_offline

AT_ONCE = 3
RATE_OVER, RATE_FROM = 5.0, 1.0  # seconds
LINE = 2**20  # bytes, at most


class Fetcher:
    """Two engines with the same model share its download: the second waits, and finds it."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._locks: dict[Repository, asyncio.Lock] = {}

    async def fetch(
        self,
        wanted: Sequence[Repository],
        environ: Mapping[str, str],
        on_progress: Callable[[FetchProgress], None],
    ) -> FetchProgress:
        """Wait until all that an engine loads is in the cache; returns what has come. Its process ends when
        it is cancelled. Raises `FetchError`."""
        async with self._locks.setdefault(wanted[0], asyncio.Lock()), self._places:
            if all(map(is_here, wanted)):
                return FetchProgress(0, 0)
            return await _fetch(wanted, environ, on_progress)


def is_complete(wanted: Sequence[Repository], environ: Mapping[str, str]) -> bool:
    """Whether there is nothing to fetch, or it must not be. Reads the disk."""
    return is_offline(environ) or all(map(is_here, wanted))


async def _fetch(
    wanted: Sequence[Repository], environ: Mapping[str, str], on_progress: Callable[[FetchProgress], None]
) -> FetchProgress:
    process = await asyncio.create_subprocess_exec(
        *child_command(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environ(environ),
        start_new_session=True,  # Ctrl-C is memoria's
        limit=LINE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        process.stdin.write(json.dumps({"repositories": [asdict(one) for one in wanted]}).encode() + b"\n")
        meter, failure = Meter(), None
        async for line in process.stdout:
            said = json.loads(line)
            if "failure" in said:
                failure = said
            else:
                on_progress(meter.read(said, time.monotonic()))
        code = await process.wait()
        if failure is not None:
            raise fetch_error(failure["failure"], failure["values"], environ)
        if code != 0:
            last = (await errors).decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {code}"]
            raise fetch_error("other", {"model": wanted[0].model, "text": last[0][:200]}, environ)
        return meter.read({"done": meter.total}, time.monotonic())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.cancel()


class Meter:
    """Bytes, and their rate over the last seconds. What an earlier fetch had left is no part of the rate."""

    def __init__(self) -> None:
        self.total = self._done = self._resumed = 0
        self._seen: deque[tuple[float, int]] = deque()

    def read(self, said: Mapping[str, int], now: float) -> FetchProgress:
        self.total = said.get("total", self.total)
        self._done = said.get("done", self._done)
        self._resumed += said.get("resumed", 0)
        self._seen.append((now, self._done))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()
        before, passed = self._seen[0][1], now - self._seen[0][0]
        rate = (self._done - before) / passed if passed >= RATE_FROM else None
        return FetchProgress(min(self._done + self._resumed, self.total), self.total, rate or None)
