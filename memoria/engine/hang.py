"""Whether a ready engine still makes progress: the policy of a hang, pure.

`/health` says nothing of it: vLLM's API server answers 200 while its engine core stands still. What counts is
work and movement. Seconds in which a request waits for the engine add up while nothing comes from it and none
of the core's own figures moves, and `patience` of them is a hang. A long prefill is none: its chunks fill the
KV cache. (Where vLLM's figures are switched off nobody sees that, so there it is asked something first.) Time
without a request neither counts nor excuses, so clients that give up and come back do not hide a core that
stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from memoria.vllm.metrics import Progress

IDLE_PATIENCES = 5  # an engine that was not asked for so many `patience` is asked by memoria


@dataclass(frozen=True, slots=True)
class Sample:
    """`at`: monotonic seconds. `waiting`: requests that wait for the engine. `progress` None: it did not
    answer. `heard` is another number whenever something has come from it."""

    at: float
    waiting: int
    progress: Progress | None
    heard: int = 0


class HangDetector:
    """One start's samples. `patience` in seconds."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.silent_for = 0.0
        self._progress: Progress | None = None
        self._before: Sample | None = None
        self._idle_since: float | None = None

    def __repr__(self) -> str:
        return f"<HangDetector silent for {self.silent_for:.1f} of {self.patience:g} s>"

    @property
    def period(self) -> float:
        """Seconds between two samples."""
        return min(10.0, self.patience / 12)

    @property
    def silent(self) -> bool:
        return self.silent_for >= self.patience

    @property
    def blind(self) -> bool:
        """It tells nothing of what it does."""
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
            self._progress = sample.progress
        moved = works or (before is not None and sample.heard != before.heard)
        if moved:
            self.silent_for = 0.0
        elif before is not None and before.waiting:
            self.silent_for += sample.at - before.at
        return moved

    def answered(self) -> None:
        """It answered memoria's own request."""
        self.silent_for = 0.0
        if self._idle_since is not None and self._before is not None:
            self._idle_since = self._before.at

    def wants_canary(self) -> bool:
        """Nobody has asked for so long that nobody would know, or nobody can see what it does."""
        if self.silent and self.blind:
            return True
        if self._idle_since is None or self._before is None:
            return False
        return self._before.at - self._idle_since >= IDLE_PATIENCES * self.patience
