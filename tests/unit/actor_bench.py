"""An engine's actor on a bench: real, tiny processes, and everything around them in the test's hands."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from memoria.config.model import Restart, Timeouts
from memoria.engine.actor import EngineActor
from memoria.engine.events import Entry, Journal
from memoria.engine.lifecycle import State
from memoria.engine.log import LogFile
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.start import Pauses
from memoria.vllm.log_lines import Phase
from tests.fakes import FakeHost, until

SERVES = "ready(); time.sleep(600)"
NEVER_READY = "time.sleep(600)"
TOUCHES_THE_DEVICE = "print('Initializing a V1 LLM engine (v0.33.0) with config'); "
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "


class Bench:
    """An actor at work. `until` follows its states one by one, so that none can be missed."""

    def __init__(self, directory: Path) -> None:
        self.log = LogFile(directory / "engine.log", max_bytes=10**6, keep=1)
        self.host = FakeHost(self.log.path, SERVES)
        self.journal = Journal()
        self.timeouts = Timeouts(start=10.0, drain=10.0, stop=10.0, release=10.0)
        self.pauses = Pauses()
        self.policy = Restart(initial=0.01, cap=0.02, attempts=3)
        self.states: list[State] = []
        self._changed = asyncio.Event()
        self._seen = 0
        self._task: asyncio.Task[None] | None = None
        self.actor: EngineActor

    def run(self) -> EngineActor:
        self.actor = EngineActor(
            "engine",
            self.host,
            self.log,
            self.journal,
            timeouts=self.timeouts,
            restart=self.policy,
            on_change=self._on_change,
            jitter=lambda: 0.0,
            pauses=self.pauses,
        )
        self._task = asyncio.create_task(self.actor.run())
        return self.actor

    async def ready(self) -> EngineActor:
        actor = self.run()
        actor.start()
        await self.until(State.READY)
        return actor

    async def until(self, *states: State) -> None:
        """Waits for each of the states in this order."""
        async with asyncio.timeout(10):
            for state in states:
                while state not in self.states[self._seen :]:
                    await self._change()
                self._seen = self.states.index(state, self._seen) + 1

    async def until_true(self, condition: Callable[[EngineSnapshot], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(self.actor.snapshot):
                await self._change()

    async def until_told(self, what: str) -> Entry:
        await until(lambda: what in self.told())
        return next(entry for entry in self.journal.entries() if slug(entry) == what)

    async def until_phase(self, phase: Phase) -> None:
        await self.until_true(lambda snapshot: snapshot.phase is phase)

    async def stopped(self) -> None:
        async with asyncio.timeout(10):
            await self.actor.settled()

    async def close(self) -> None:
        if self._task is not None:
            self.host.released.set()
            self.host.alone.set()
            self.actor.stop(now=True)
            await self.stopped()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def told(self) -> list[str]:
        return [slug(entry) for entry in self.journal.entries()]

    def _on_change(self, snapshot: EngineSnapshot) -> None:
        if not self.states or self.states[-1] is not snapshot.state:
            self.states.append(snapshot.state)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def slug(entry: Entry) -> str:
    """Its kind; of a transition the state that it leads to."""
    return entry.state or entry.kind


def kill(actor: EngineActor) -> None:
    """As the host's OOM killer would do: the leader alone."""
    assert actor.snapshot.pid is not None
    os.kill(actor.snapshot.pid, signal.SIGKILL)
