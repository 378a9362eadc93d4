"""The model names that engines answer to beyond the file: adapters loaded at run time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm import client as vllm_client

INTERVAL = 1.0  # seconds between two looks: a client that sends wrong names must not keep engines busy


class ModelNames:
    """Of each engine that is ready, by its own `/v1/models`. `changes` counts changes."""

    def __init__(self, supervisor: Supervisor, *, interval: float = INTERVAL) -> None:
        self._supervisor, self._interval = supervisor, interval
        self._names: dict[str, tuple[str, ...]] = {}
        self._look: asyncio.Task[None] | None = None
        self._looked_at = -interval
        self._tasks: set[asyncio.Task[None]] = set()
        self.changes = 0

    def of(self, engine: str) -> tuple[str, ...]:
        return self._names.get(engine, ())

    def on_engine(self, snapshot: EngineSnapshot) -> None:
        """Looks when an engine gets ready, and forgets what its next process need not have."""
        if FACTS[snapshot.state].frees_memory:
            self._put(snapshot.name, ())
        elif snapshot.state is State.READY:
            task = asyncio.get_running_loop().create_task(self.learn(snapshot.name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def look(self, done: Callable[[], None]) -> bool:
        """Looks at all ready engines, one look for all who want one, and calls `done`. False: it has just
        looked."""
        if self._look is None:
            if time.monotonic() - self._looked_at < self._interval:
                return False
            self._look = asyncio.get_running_loop().create_task(self._look_everywhere())
        self._look.add_done_callback(lambda _: done())
        return True

    async def _look_everywhere(self) -> None:
        try:
            await asyncio.gather(*(self.learn(name) for name in self._supervisor.actors))
        finally:
            self._look, self._looked_at = None, time.monotonic()

    async def learn(self, engine: str) -> None:
        """An engine that does not answer keeps the names that it had."""
        actor = self._supervisor.actors.get(engine)
        if actor is None or actor.snapshot.state is not State.READY or actor.snapshot.address is None:
            return
        address = actor.snapshot.address
        cards = await vllm_client.list_models(address, timeout=self._supervisor.config.timeouts.health)
        if cards is not None and actor.snapshot.address is address:
            names = (card.get("id") for card in cards)
            self._put(engine, tuple(name for name in names if isinstance(name, str)))

    def _put(self, engine: str, names: tuple[str, ...]) -> None:
        if self.of(engine) != names:
            self._names[engine] = names
            self.changes += 1
