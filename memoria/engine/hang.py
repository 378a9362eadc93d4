"""Whether a ready engine still makes progress: a pure detector, and the watch that feeds it.

`/health` does not show it: vLLM's API server answers 200 while its engine core stands still. What counts is
work and movement. Seconds in which a request waits for the engine add up while nothing comes from it and none
of the core's own figures moves; `patience` of them is a hang. A long prefill is none: its chunks fill the KV
cache. (Where vLLM's figures are switched off that is invisible, so there memoria sends a request of its own
first.) Time without a request neither counts nor excuses, so that clients that give up and come back do not
hide a core that stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from memoria.engine.host import EngineHost
from memoria.engine.traffic import Traffic
from memoria.vllm.facts import EngineAddress, Progress

IDLE_PATIENCES = 5  # after so many `patience` without a request memoria sends one
CORE_GONE = "its engine core is gone"  # an alert
LONGEST_PERIOD = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """`at`: monotonic seconds. `waiting`: requests that wait for the engine. `progress` None: no answer.
    `heard` differs whenever something has come from the engine."""

    at: float
    waiting: int
    progress: Progress | None
    heard: int = 0


class HangDetector:
    """One start's samples. `patience` in seconds."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.silent_for = 0.0
        self.worked_at: float | None = None  # the latest sample by which the core had moved
        self._progress: Progress | None = None
        self._before: Sample | None = None
        self._idle_since: float | None = None

    def __repr__(self) -> str:
        return f"<HangDetector silent for {self.silent_for:.1f} of {self.patience:g} s>"

    @property
    def period(self) -> float:
        """Seconds between two samples."""
        return min(LONGEST_PERIOD, self.patience / 12) if self.patience else LONGEST_PERIOD

    @property
    def silent(self) -> bool:
        return self.silent_for >= self.patience

    @property
    def blind(self) -> bool:
        """The engine shows no figures."""
        return self._before is not None and self._before.progress == ()

    def see(self, sample: Sample) -> bool:
        """Whether the engine moved since the sample before."""
        before, self._before = self._before, sample
        if sample.waiting:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = sample.at
        works = bool(sample.progress) and sample.progress != self._progress
        if works:
            self._progress, self.worked_at = sample.progress, sample.at
        moved = works or (before is not None and sample.heard != before.heard)
        if moved:
            self.silent_for = 0.0
        elif before is not None and before.waiting:
            self.silent_for += sample.at - before.at
        return moved

    def answered(self) -> None:
        """The engine answered memoria's own request."""
        self.silent_for = 0.0
        if self._idle_since is not None and self._before is not None:
            self._idle_since = self._before.at

    def wants_canary(self) -> bool:
        """Idle for so long that a hang would go unnoticed, or silent without figures."""
        if self.silent and self.blind:
            return True
        if self._idle_since is None or self._before is None:
            return False
        return self._before.at - self._idle_since >= IDLE_PATIENCES * self.patience


class HangWatch:
    """Over one start of an engine. `patience` in seconds, 0 never suspects; `second_look`: seconds, at least,
    between the first suspicion and the verdict."""

    def __init__(
        self,
        host: EngineHost,
        address: EngineAddress,
        traffic: Traffic,
        patience: float,
        second_look: float = 1.0,
    ) -> None:
        self._host, self._address, self._traffic, self._second_look = host, address, traffic, second_look
        self._detector = HangDetector(patience)
        self._alarm = asyncio.Event()
        self._alarmed_by = ""

    def alert(self, reason: str) -> None:
        """A suspicion from elsewhere, such as vLLM's own watchdog."""
        self._alarmed_by = reason
        self._alarm.set()

    def set_patience(self, patience: float) -> None:
        self._detector.patience = patience

    async def until_silent(self) -> str:
        """Wait for something to suspect; returns what."""
        while True:
            if not self._detector.patience:  # the proxy's own limit wants to know what moves
                await asyncio.sleep(self._detector.period)
                await self._look()
                continue
            if await self._alarmed(self._detector.period):
                self._alarm.clear()
                return self._alarmed_by
            await self._look()
            if self._detector.silent and not self._detector.blind:
                return f"no progress for {self._detector.silent_for:.0f} s"
            wanted = self._detector.wants_canary()
            if wanted and not await self._answers_canary() and not await self._look():
                return "it did not answer a request of memoria's own"

    async def is_hung(self) -> bool:
        """The second look: still nothing moves, and a request of memoria's own goes unanswered."""
        if await self._look():
            return False
        async with self._canary() as canary:
            await asyncio.wait({canary}, timeout=max(self._second_look, self._detector.period))
            if canary.done() and canary.result():
                self._detector.answered()
                return False
            return not await self._look()

    async def _look(self) -> bool:
        waiting, heard = self._traffic.flow()
        progress = await self._host.progress(self._address)
        moved = self._detector.see(Sample(time.monotonic(), waiting, progress, heard))
        if self._detector.worked_at is not None:  # until the next sample, which may be late, says otherwise
            self._traffic.works_until = self._detector.worked_at + 2 * self._detector.period
        return moved

    async def _alarmed(self, timeout: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._alarm.wait()
        return self._alarm.is_set()

    async def _answers_canary(self) -> bool:
        """Within `patience`, as any other request."""
        async with self._canary() as canary:
            await asyncio.wait({canary}, timeout=self._detector.patience)
            answered = canary.done() and canary.result()
        if answered:
            self._detector.answered()
        return answered

    @contextlib.asynccontextmanager
    async def _canary(self) -> AsyncIterator[asyncio.Task[bool]]:
        task = asyncio.create_task(self._host.answers(self._address), name="canary")
        try:
            yield task
        finally:
            task.cancel()
