"""Where the time of each engine's latest start goes, seen in its snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from memoria.admin.status.status import StartPart, StartSpan
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.vllm.log_lines import Phase

_BY_STATE: Mapping[State, StartPart] = {State.FETCHING: "fetch", State.QUEUED: "queue"}
_BY_PHASE: Mapping[Phase, StartPart] = {
    Phase.SPAWNED: "import",
    Phase.IMPORTED: "import",
    Phase.CONFIGURED: "import",
    Phase.AT_GATE: "gate",
    Phase.ENGINE: "load",
    Phase.LOADING: "load",
    Phase.COMPILING: "compile",
    Phase.PROFILING: "profile",
    Phase.CAPTURING: "graphs",
    Phase.WARMING_UP: "warm-up",
    Phase.LISTENING: "warm-up",
}


@dataclass(slots=True)
class _Latest:
    """The spans that have ended, and the one that has not."""

    ended: tuple[StartSpan, ...] = ()
    part: StartPart | None = None
    began: float = 0.0


class StartTimes:
    """`began`: monotonic seconds; by default this process's start. `all_ready` is called at each change until
    it is true."""

    def __init__(
        self,
        all_ready: Callable[[], bool],
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._all_ready, self._clock = all_ready, clock
        self._began = began if began is not None else _process_began()
        self._latest: dict[str, _Latest] = {}
        self.ready_after: float | None = None

    def saw(self, snapshot: EngineSnapshot) -> None:
        latest = self._latest.setdefault(snapshot.name, _Latest())
        part, now = _part(snapshot), self._clock() - self._began
        if part != latest.part:
            if latest.part is None:
                latest.ended = ()  # another start
            else:
                latest.ended += (StartSpan(latest.part, latest.began, now - latest.began),)
            latest.part, latest.began = part, now
        if self.ready_after is None and self._all_ready():
            self.ready_after = now

    def of(self, engine: str) -> tuple[StartSpan, ...]:
        latest = self._latest.get(engine, _Latest())
        if latest.part is None:
            return latest.ended
        now = self._clock() - self._began
        return (*latest.ended, StartSpan(latest.part, latest.began, now - latest.began))


def _part(snapshot: EngineSnapshot) -> StartPart | None:
    """None for an engine that is not on its way."""
    if snapshot.state is State.STARTING:
        return _BY_PHASE[snapshot.phase] if snapshot.phase else "queue"
    return _BY_STATE.get(snapshot.state)


def _process_began() -> float:
    return time.monotonic() - (time.time() - psutil.Process().create_time())
