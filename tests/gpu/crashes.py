"""What a SIGKILL of one engine under load does to it and to its neighbour."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

from memoria.admin.status.status import EngineStatus
from memoria.bench.figures import Phase
from memoria.bench.load import Endpoint, Engine, Load, run_phase
from memoria.cli.commands.bench import target
from tests.gpu.box import GpuBox, core_of, wait
from tests.integration.daemon import RunningDaemon


def kill(box: GpuBox, daemon: RunningDaemon, name: str, victim: str) -> dict[str, Any]:
    """SIGKILL of an engine's "leader" or "core" with both engines loaded, until it is ready again: when its
    memory was back, and what its neighbour felt."""
    before = daemon.status()
    engine = daemon.engine(name)
    (other,) = (e for e in before.engines if e.name != name)
    leader = daemon.leader(name)
    core = core_of(leader)
    # where the driver does not tell what a process holds, its budget is the best guess
    kept = box.used_bytes() - (engine.used_bytes or engine.budget_bytes) + box.slack_bytes
    released: list[float] = []

    def watch() -> None:
        released.append(wait(lambda: box.used_bytes() <= kept, "the memory is back", every=0.005))

    with Loaded(daemon, engine, box.load) as own, Loaded(daemon, other, box.load) as neighbour:
        watcher = threading.Thread(target=watch)
        began = time.monotonic()
        os.kill(leader if victim == "leader" else core, signal.SIGKILL)
        watcher.start()
        if victim == "leader":
            box.bury([core])
        wait(lambda: daemon.engine(name).state != "ready", "the end is seen", every=0.01)
        wait(lambda: daemon.engine(name).state == "ready", "the engine is back", every=0.05)
        ready = time.monotonic() - began
        watcher.join()
    return {
        "victim": f"{name} {victim}",
        "released_after": released[0],
        "ready_after": ready,
        "restarts": daemon.engine(name).restarts - engine.restarts,
        "own_failures": own.failures,
        "neighbour_pid_kept": daemon.engine(other.name).pid == other.pid,
        "neighbour_failures": neighbour.failures,
        "neighbour_failure": neighbour.failure,
        "neighbour_answers": neighbour.answers,
    }


class Loaded:
    """Loads one engine, in a thread, phase after phase; the last one ends after the block. Entered when
    requests are under way."""

    def __init__(self, daemon: RunningDaemon, engine: EngineStatus, load: Load) -> None:
        self._daemon, self._engine, self._load = daemon, engine, load
        self._over = threading.Event()
        self._phases: list[Phase] = []
        self._thread = threading.Thread(target=self._work)

    @property
    def failures(self) -> int:
        return sum(phase.failures for phase in self._phases)

    @property
    def failure(self) -> str | None:
        """The first one."""
        told = (engine.failures.first for phase in self._phases for engine in phase.engines)
        return next(filter(None, told), None)

    @property
    def answers(self) -> int:
        """Texts embedded, or tokens made."""
        return round(sum(phase.seconds * engine.rate for phase in self._phases for engine in phase.engines))

    def __enter__(self) -> Loaded:
        self._thread.start()
        name = self._engine.name
        try:
            wait(lambda: self._daemon.engine(name).in_flight > 0, f"{name} is loaded", every=0.01)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        engine: Engine = target(self._engine)
        endpoint = Endpoint(self._daemon.status().url)
        while not self._over.is_set():
            self._phases.append(asyncio.run(run_phase("load", endpoint, self._load, [engine])))
