"""Which processes belong to which start of an engine, by the MEMORIA_START in their environments.

An environment is read from the process's own memory (proc_pid_environ(5)); if the process is stuck in a
driver, the read may never return. So /proc is read in a thread, once for all callers, and the next look skips
a stuck process, which keeps its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from memoria.aio import in_daemon_thread
from memoria.engine.process.marker import START, environ, process_ids, value_in

Starts = Mapping[str, frozenset[int]]


class ProcessTable:
    """`timeout`: seconds for one look. `latest`: process ids by start, at the last look."""

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        processes: Callable[[], Iterable[int]] = process_ids,
        read: Callable[[int], bytes | None] = environ,
    ) -> None:
        self._timeout, self._processes, self._read = timeout, processes, read
        self._running: asyncio.Future[Starts] | None = None
        self._reading = [0]  # the process that the running look reads
        self._stuck: dict[int, asyncio.Future[Starts]] = {}
        self.latest: Starts = {}

    def __repr__(self) -> str:
        return f"<ProcessTable of {len(self.latest)} starts, stuck {sorted(self._stuck)}>"

    async def look(self) -> Starts:
        """The processes now: never the result of a look that began before the call. Raises `OSError`
        (`TimeoutError` is one) if /proc cannot be read: then no tree may be taken for empty."""
        before = self._running
        if before is not None and not before.done():
            await asyncio.wait({before}, timeout=self._timeout)
        if self._running is before:  # else another caller has begun one meanwhile
            self._running = self._begin()
        running = self._running
        assert running is not None
        try:
            async with asyncio.timeout(self._timeout):
                self.latest = await asyncio.shield(running)
        except TimeoutError:
            pid = self._reading[0]
            self._stuck[pid] = running
            raise TimeoutError(f"process {pid} cannot be looked at") from None
        return self.latest

    def _begin(self) -> asyncio.Future[Starts]:
        self._stuck = {pid: look for pid, look in self._stuck.items() if not look.done()}
        known = {pid: start for start, pids in self.latest.items() for pid in pids}
        stuck = {pid: known.get(pid) for pid in self._stuck}

        def look() -> Starts:
            starts: dict[str, set[int]] = {}
            for pid in self._processes():
                if pid in stuck:
                    start = stuck[pid]
                else:
                    at[0] = pid
                    start = value_in(self._read(pid) or b"", START)
                if start:
                    starts.setdefault(start, set()).add(pid)
            return {start: frozenset(pids) for start, pids in starts.items()}

        at = self._reading = [0]  # one for each look: a hung one may return during the next
        return in_daemon_thread(look)
