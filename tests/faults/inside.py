"""Doors that a client does not have: to what only the daemon itself can count, its asyncio tasks, to its
event loop, and to the stub engines' own sockets.

`observed(folder)` is a PYTHONPATH with a sitecustomize.py that makes any Python process write the number of
its tasks to `tasks-PID` in the folder when SIGUSR1 comes; `footprint` asks and waits for the answer. On
SIGUSR2 the main thread, and with it the event loop, never comes back from a call; all other threads go on.
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

signal.signal(signal.SIGUSR1, tell)
signal.signal(signal.SIGUSR2, block)
"""


def observed(folder: Path) -> str:
    place = folder / "observed"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(SITECUSTOMIZE.format(path=str(folder / "tasks-")))
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


def _tasks_of(pid: int, folder: Path) -> int:
    answer = folder / f"tasks-{pid}"
    answer.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    until(answer.exists)
    return int(answer.read_text())


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
