"""Doors that a client does not have: to what only the daemon itself can count, its asyncio tasks, to its
event loop, and to the stub engines' own sockets.

`observed(folder)` is a PYTHONPATH with a sitecustomize.py that makes any Python process write the number of
its tasks to `tasks-PID` in the folder when SIGUSR1 comes; `footprint` asks and waits for the answer. On
SIGUSR2 the main thread, and with it the event loop, never comes back from a call; all other threads go on.
On SIGRTMIN it writes the event loop's longest turn since the last such signal to `turn-PID`, and looks on.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.daemon import PATIENCE, ROOT, RunningDaemon, until

SITECUSTOMIZE = """\
import asyncio, os, signal, time

def tell(number, frame):
    try:
        count = len(asyncio.all_tasks())
    except RuntimeError:
        count = 0
    draft = {path!r} + str(os.getpid())
    with open(draft + ".new", "w") as file:
        file.write(str(count))
    os.replace(draft + ".new", draft)

def block(number, frame):
    while True:
        time.sleep(1)

class Turn:
    loop, worked, at, longest = None, 0.0, 0.0, (0.0, 0.0)

    def tell(self, number, frame):
        draft = {turn!r} + str(os.getpid())
        with open(draft + ".new", "w") as file:
            file.write(f"{{self.longest[0]}} {{self.longest[1]}}")
        os.replace(draft + ".new", draft)
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            self.loop.call_later(0, self.tick)
            self.worked, self.at = time.thread_time(), time.monotonic()
        self.longest = 0.0, 0.0

    def tick(self):
        worked, at = time.thread_time(), time.monotonic()
        turn = worked - self.worked, at - self.at - 0.001
        self.longest = max(self.longest[0], turn[0]), max(self.longest[1], turn[1])
        self.worked, self.at = worked, at
        self.loop.call_later(0.001, self.tick)

signal.signal(signal.SIGRTMIN, Turn().tell)
signal.signal(signal.SIGUSR1, tell)
signal.signal(signal.SIGUSR2, block)
"""


def observed(folder: Path) -> str:
    place = folder / "observed"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(
        SITECUSTOMIZE.format(path=str(folder / "tasks-"), turn=str(folder / "turn-"))
    )
    return f"{place}:{ROOT}"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of the daemon's own process. `memory` in bytes, resident."""

    memory: int
    descriptors: int
    threads: int
    tasks: int

    def __str__(self) -> str:
        return (
            f"{self.memory / 2**20:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads, "
            f"{self.tasks} tasks"
        )


def footprint(pid: int, folder: Path) -> Footprint:
    """Of a daemon that was started with `PYTHONPATH=observed(folder)`."""
    process = psutil.Process(pid)
    return Footprint(
        memory=process.memory_info().rss,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        tasks=_tasks_of(pid, folder),
    )


@dataclass(frozen=True, slots=True)
class LoopTurn:
    """All that the event loop did between two ticks of a timer, in seconds: those that its thread computed,
    and those by the clock."""

    processor: float
    clock: float


def longest_turn(pid: int, folder: Path) -> LoopTurn:
    """Since the last call, at least the first of which counts nothing."""
    return LoopTurn(*map(float, _answer(pid, folder / f"turn-{pid}", signal.SIGRTMIN).split()))


def _tasks_of(pid: int, folder: Path) -> int:
    return int(_answer(pid, folder / f"tasks-{pid}", signal.SIGUSR1))


def _answer(pid: int, file: Path, number: int) -> str:
    file.unlink(missing_ok=True)
    os.kill(pid, number)
    until(file.exists)
    return file.read_text()


class _EngineConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def change_stub(daemon: RunningDaemon, engine: str, **faults: object) -> None:
    """Gives a running stub engine other faults, past memoria."""
    environ = psutil.Process(daemon.leader(engine)).environ()
    connection = _EngineConnection(daemon.box.runtime / "engines" / f"{environ['MEMORIA_START']}.sock")
    connection.request("POST", "/stub/fault", json.dumps(faults))
    assert connection.getresponse().status == 200
    connection.close()
