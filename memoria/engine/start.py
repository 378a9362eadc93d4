"""What is true of one start of an engine only, from its place in the queue to its memory's return."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from memoria.engine.address import EngineAddress
from memoria.engine.host import CoreConnections, Ticket
from memoria.engine.log.reader import Follower
from memoria.engine.process.exit_status import ExitStatus
from memoria.engine.process.oom_kills import oom_kills
from memoria.engine.process.process import EngineProcess


@dataclass(slots=True)
class Start:
    """Written by the engine's actor alone. Times are monotonic seconds.

    `asked`: its end was asked for, so it is no crash. `trouble`: why memoria itself ended it.
    `slipped_through`: its core went on before it was let through, so no passenger holds it. `behind_gate`: it
    may hold device memory. `core_lost`: its core has ended, and the leader may not know yet. `oom_kills`: how
    many there had been when it was made.
    """

    id: str | None = None
    ticket: Ticket | None = None
    boarding: CoreConnections | None = None
    process: EngineProcess | None = None
    address: EngineAddress | None = None
    log_from: int = 0  # bytes
    follower: Follower | None = None
    spawned_at: float | None = None
    ready_at: float | None = None
    exited_at: float | None = None
    exit: ExitStatus | None = None
    segments: frozenset[str] = frozenset()  # of shared memory, that its processes had when it was ready
    let_through: bool = False
    slipped_through: asyncio.Event = field(default_factory=asyncio.Event)
    oom_kills: int | None = field(default_factory=oom_kills)
    behind_gate: bool = False
    core_lost: bool = False
    asked: bool = False
    trouble: str | None = None

    @property
    def seconds_to_ready(self) -> float | None:
        return _between(self.spawned_at, self.ready_at)

    @property
    def seconds_of_ready(self) -> float | None:
        return _between(self.ready_at, self.exited_at)

    def saw_oom_kill(self) -> bool:
        """Whether the kernel has killed a process of this cgroup since."""
        now = oom_kills()
        return self.oom_kills is not None and now is not None and now > self.oom_kills


def _between(first: float | None, then: float | None) -> float | None:
    return None if first is None or then is None else then - first
