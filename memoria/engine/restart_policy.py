"""What follows a start that ended unasked: the restart policy, applied to one engine's history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from memoria.config.model import Restart
from memoria.engine.launch_settings import LaunchSettings
from memoria.engine.lifecycle import Ending, Event, History, after_crash
from memoria.engine.process.exit_status import ExitStatus
from memoria.engine.snapshot import EngineSnapshot
from memoria.engine.start import Start
from memoria.vllm.diagnosis import Diagnosis, diagnose


@dataclass(frozen=True, slots=True)
class Decision:
    """`delay` in seconds; `reason` is for a person to read."""

    event: Literal[Event.RETRY, Event.GIVE_UP]
    delay: float
    reason: str
    diagnosis: Diagnosis
    first: bool  # crash for a long time: no sign of a loop


class RestartPolicy:
    """`policy` may be replaced at any time. `jitter` is uniform in [-1, 1]."""

    def __init__(self, engine: str, policy: Restart, jitter: Callable[[], float]) -> None:
        self._engine, self.policy, self._jitter = engine, policy, jitter
        self._history = History()

    def pardon(self) -> None:
        """A person asked for the engine: all its attempts are there again."""
        self._history = History(ever_ready=self._history.ever_ready)

    def saw_ready(self) -> None:
        self._history = replace(self._history, unready_starts=0, ever_ready=True)

    def sentence(
        self,
        start: Start,
        last_log: Callable[[], list[str]],
        situation: LaunchSettings,
        snapshot: EngineSnapshot,
    ) -> Decision:
        found = replace(situation, kv_gib=snapshot.figures.kv_gib, oom_kill=start.saw_oom_kill())
        diagnosis = self._diagnose(start, last_log, found)
        ready_for, ticket = start.seconds_of_ready, start.ticket
        spoiled = ready_for is None and ticket is not None and ticket.spoiled
        ending = Ending(ready_for, diagnosis.cause, diagnosis.retry, spoiled)
        verdict = after_crash(self.policy, self._history, ending, self._jitter())
        self._history, first = verdict.history, verdict.history.crashes == 1
        if verdict.delay is None:
            return Decision(Event.GIVE_UP, 0.0, verdict.reason, diagnosis, first)
        return Decision(Event.RETRY, verdict.delay, verdict.reason, diagnosis, first)

    def _diagnose(
        self, start: Start, last_log: Callable[[], list[str]], situation: LaunchSettings
    ) -> Diagnosis:
        if start.trouble is not None:
            return Diagnosis(start.trouble, f"memoria logs {self._engine}", "yes", "memoria")
        return diagnose(last_log(), start.exit or ExitStatus(code=None), situation)
