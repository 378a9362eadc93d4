"""The table of `lifecycle.py`, set in motion: events come through one inbox, and every state has its work."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from memoria.engine.lifecycle import Event, State, accepts, meant, next_state

logger = logging.getLogger(__name__)

WISHES = frozenset({Event.START, Event.STOP, Event.KILL, Event.RESTART, Event.RESTART_NOW, Event.ADOPT})

# A bug in a state's work must not take the engine's task down: what the state reports instead, after a pause.
# While memory is on its way back it is that it has not come: what is held keeps the gate closed, and is tried
# again.
ON_BUG = {
    State.QUEUED: Event.UNSPAWNABLE,
    State.STARTING: Event.OVERDUE,
    State.READY: Event.SILENT,
    State.SUSPECT: Event.MOVED,
    State.DRAINING: Event.DRAINED,
    State.STOPPING: Event.STUCK,
    State.RELEASING: Event.STUCK,
    State.HELD: Event.STUCK,
    State.BACKOFF: Event.DUE,
}
PAUSE = 1.0  # seconds


class Machine(ABC):
    """Whoever derives from it has one coroutine per state, `_while_<state>`, that does the state's work and
    ends in the next event, or in None when only the outside can end the state. A state's work is cancelled
    when the state ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._inbox: asyncio.Queue[tuple[Event, object]] = asyncio.Queue()
        self._work: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def state(self) -> State: ...

    @abstractmethod
    def _enter(self, state: State, event: Event) -> None:
        """The state begins, because of `event`; its work follows."""

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """A state's work had a bug; what it reports is in `ON_BUG`."""

    @abstractmethod
    def _still_counts(self, sender: object) -> bool:
        """Whether an event is of the present, when it is not from the state's own work."""

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                event, sender = await self._inbox.get()
                if event in WISHES:
                    event = meant(self.state, event)
                    counts = accepts(self.state, event)
                else:  # what an earlier state's work or an earlier process tells is old news
                    counts = sender is not None and (sender is self._work or self._still_counts(sender))
                if counts:
                    try:
                        self._step(event)
                    except Exception:  # without its task nobody could stop the engine any more
                        logger.exception("%s: a bug in memoria", self.name)
        finally:
            if self._work is not None:
                self._work.cancel()

    def _tell(self, event: Event, sender: object = None) -> None:
        self._inbox.put_nowait((event, sender))

    def _step(self, event: Event) -> None:
        state = next_state(self.state, event)
        if self._work is not None:
            self._work.cancel()
        try:
            self._enter(state, event)
        finally:  # a state without its work would never end
            self._work = asyncio.create_task(self._do(self.state), name=f"{self.name} {self.state}")

    async def _do(self, state: State) -> None:
        work: Callable[[], Awaitable[Event | None]] = getattr(self, f"_while_{state.value}")
        try:
            event = await work()
        except Exception as error:
            logger.exception("%s: a bug in memoria while %s", self.name, state)
            self._failed(error)
            event = ON_BUG.get(state)
            await asyncio.sleep(PAUSE)
        if event is not None:
            self._tell(event, asyncio.current_task())
