"""What `memoria run` shows while engines start, fail and get ready, on a terminal or not: golden files.

`MEMORIA_UPDATE_GOLDEN=1` writes them anew; look at what changed.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memoria.cli.screens.live import Region
from memoria.cli.screens.run import PlainScreen, Screen, TerminalScreen
from memoria.config.model import Config
from memoria.daemon.daemon import Daemon
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.text import GIB, MIB
from memoria.vllm.diagnosis import Diagnosis
from memoria.vllm.facts import FetchProgress
from memoria.vllm.log_lines import Phase, StartFigures
from tests.unit.cli.test_render_check import check_golden
from tests.unit.plans import config

NOW = 1_700_000_000.0
USED = {"embedding": int(40.8 * GIB), "generation": int(83.1 * GIB)}
LOG = [f"(APIServer pid=4122) INFO 11-23 14:22:{second:02} step {second}" for second in range(30)]
FAILURE = "(EngineCore pid=4123) ERROR 11-23 14:23:00 torch.OutOfMemoryError: CUDA out of memory."

EMBEDDING = EngineSnapshot("embedding", State.QUEUED, NOW - 40)
GENERATION = EngineSnapshot("generation", State.QUEUED, NOW - 40)


def starting(engine: EngineSnapshot, pid: int) -> EngineSnapshot:
    return replace(engine, state=State.STARTING, pid=pid, since=NOW - 12, phase=Phase.SPAWNED)


EMBEDDING_READY = replace(
    starting(EMBEDDING, 4121),
    state=State.READY,
    start_seconds=20.1,
    figures=StartFigures(kv_tokens=1_048_576),
)
ON_ITS_WAY = FetchProgress(int(3.1 * GIB), int(4.4 * GIB), 96.0 * MIB)
GENERATION_FETCHES = replace(
    GENERATION, state=State.FETCHING, since=NOW - 30, fetch=ON_ITS_WAY, percent=70, detail=str(ON_ITS_WAY)
)
GENERATION_LOADS = replace(starting(GENERATION, 4122), phase=Phase.LOADING, percent=62)
GENERATION_READY = replace(
    GENERATION_LOADS,
    state=State.READY,
    start_seconds=41.0,
    figures=StartFigures(kv_tokens=613_216, concurrency=74.9, max_model_len=8192),
)
GENERATION_FAILS = replace(
    GENERATION_LOADS,
    state=State.BACKOFF,
    pid=None,
    detail="exited with 1: CUDA out of memory",
    retry_at=NOW + 8,
    diagnosis=Diagnosis("CUDA out of memory", "lower max_num_seqs", "limited"),
)


@dataclass
class FakeSupervisor:
    """The part of a supervisor that a screen uses; `set` is a transition."""

    config: Config
    now: dict[str, EngineSnapshot]
    listeners: list[Callable[[EngineSnapshot], None]] = field(default_factory=list)

    @property
    def actors(self) -> dict[str, Any]:
        log = SimpleNamespace(last_log=lambda: [*LOG, FAILURE])
        return dict.fromkeys(self.now, log)

    def listen(self, listener: Callable[[EngineSnapshot], None]) -> None:
        self.listeners.append(listener)

    def snapshots(self) -> tuple[EngineSnapshot, ...]:
        return tuple(self.now.values())

    def all_ready(self) -> bool:
        return all(snapshot.state is State.READY for snapshot in self.snapshots())

    async def set(self, snapshot: EngineSnapshot) -> None:
        self.now[snapshot.name] = snapshot
        for listener in self.listeners:
            listener(snapshot)
        for _ in range(3):  # a task reads what a ready engine uses
            await asyncio.sleep(0)


@pytest.fixture
def supervisor() -> FakeSupervisor:
    planned = config({"embedding": "0.3", "generation": "0.6"})
    ports = {"embedding": 8100, "generation": 8101}
    engines = tuple(replace(engine, port=ports[engine.name]) for engine in planned.engines)
    return FakeSupervisor(
        replace(planned, engines=engines), {"embedding": EMBEDDING, "generation": GENERATION}
    )


def daemon_of(supervisor: FakeSupervisor) -> Daemon:
    async def used_bytes(name: str) -> int | None:
        return USED[name]

    collector = SimpleNamespace(used_bytes=used_bytes)
    fake = SimpleNamespace(
        config=supervisor.config, supervisor=supervisor, collector=collector, url="http://127.0.0.1:8200"
    )
    return cast("Daemon", fake)


async def play(screen: Screen, supervisor: FakeSupervisor) -> None:
    """A start in which generation fails once."""
    with screen:
        for snapshot in (
            starting(EMBEDDING, 4121),
            starting(GENERATION, 4122),
            EMBEDDING_READY,
            GENERATION_LOADS,
            GENERATION_FAILS,
            GENERATION,
            starting(GENERATION, 4124),
            GENERATION_READY,
        ):
            await supervisor.set(snapshot)


async def test_a_pipe_gets_a_line_for_each_transition_and_why_an_engine_failed(
    supervisor: FakeSupervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    await play(PlainScreen(daemon_of(supervisor), clock=lambda: NOW), supervisor)
    check_golden("run-plain", capsys.readouterr().out.rstrip("\n"))


def terminal(file: io.StringIO) -> Region:
    return Region(file, size=os.terminal_size((80, 24)))


PICTURES = {
    "fetches": (starting(EMBEDDING, 4121), GENERATION_FETCHES),
    "starts": (EMBEDDING_READY, GENERATION_LOADS),
    "fails": (EMBEDDING_READY, GENERATION_FAILS),
    "ready": (EMBEDDING_READY, GENERATION_READY),
}


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("name", PICTURES)
async def test_a_terminal_has_a_line_for_each_engine(
    supervisor: FakeSupervisor, name: str, color: bool
) -> None:
    region = terminal(io.StringIO())
    screen = TerminalScreen(daemon_of(supervisor), region, color=color, clock=lambda: NOW)
    with screen:
        for snapshot in PICTURES[name]:
            await supervisor.set(snapshot)
        picture = "\n".join(screen.picture(80))
    check_golden(f"run-{name}-{'color' if color else 'plain'}", picture)


async def test_a_terminal_keeps_why_an_engine_failed_above_the_lines_that_are_redrawn(
    supervisor: FakeSupervisor,
) -> None:
    file = io.StringIO()
    screen = TerminalScreen(daemon_of(supervisor), terminal(file), color=False, clock=lambda: NOW)
    await play(screen, supervisor)
    shown = file.getvalue()
    assert shown.count("hint: lower max_num_seqs") == 1
    assert shown.count("CUDA out of memory.") == 1
    assert shown.count("INFO 11-23") == 19  # with the error twenty lines
    assert shown.rpartition("memoria  ")[2].startswith("   all ready   page http://127.0.0.1:8200/")
