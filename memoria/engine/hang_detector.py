"""Watching one ready engine for a hang: samples its figures, and asks it something where that tells more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from memoria.engine.address import EngineAddress
from memoria.engine.hang import HangDetector, Sample
from memoria.engine.host import EngineHost
from memoria.engine.traffic import Traffic

SWITCHED_OFF = 10.0  # seconds until a reload that switches it on is seen
SECOND_LOOK = 1.0  # seconds, at least, between the first suspicion and the verdict


class HangWatch:
    """Over one start of an engine. `patience` in seconds; 0 never suspects."""

    def __init__(self, around: EngineHost, address: EngineAddress, traffic: Traffic, patience: float) -> None:
        self._around, self._address, self._traffic = around, address, traffic
        self._liveness = HangDetector(patience)
        self._alarm = asyncio.Event()
        self._alarmed_by = ""

    def alert(self, what: str) -> None:
        """Somebody else has a suspicion, such as vLLM's own watchdog."""
        self._alarmed_by = what
        self._alarm.set()

    def adopt(self, patience: float) -> None:
        self._liveness.patience = patience

    async def until_silent(self) -> str:
        """Waits until there is something to suspect; says what."""
        while True:
            if not self._liveness.patience:
                await asyncio.sleep(SWITCHED_OFF)
                continue
            if await self._alarmed(self._liveness.period):
                self._alarm.clear()
                return self._alarmed_by
            await self._look()
            if self._liveness.silent and not self._liveness.blind:
                return f"no progress for {self._liveness.silent_for:.0f} s"
            asked = self._liveness.wants_canary()
            if asked and not await self._answers_canary() and not await self._look():
                return "it did not answer a request of memoria's own"

    async def is_hung(self) -> bool:
        """The second look: whether still nothing moves, and a request of memoria's own is not answered."""
        if await self._look():
            return False
        async with self._canary() as canary:
            await asyncio.wait({canary}, timeout=max(SECOND_LOOK, self._liveness.period))
            if canary.done() and canary.result():
                self._liveness.answered()
                return False
            return not await self._look()

    async def _look(self) -> bool:
        waiting, heard = self._traffic.flow()
        progress = await self._around.progress(self._address)
        return self._liveness.see(Sample(time.monotonic(), waiting, progress, heard))

    async def _alarmed(self, timeout: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._alarm.wait()
        return self._alarm.is_set()

    async def _answers_canary(self) -> bool:
        """Gives it as long as any other request has."""
        async with self._canary() as canary:
            await asyncio.wait({canary}, timeout=self._liveness.patience)
            answered = canary.done() and canary.result()
        if answered:
            self._liveness.answered()
        return answered

    @contextlib.asynccontextmanager
    async def _canary(self) -> AsyncIterator[asyncio.Task[bool]]:
        task = asyncio.create_task(self._around.answers(self._address), name="canary")
        try:
            yield task
        finally:
            task.cancel()
