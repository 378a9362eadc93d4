"""The C program in `load/`, as an object: it answers as the upstream, and it runs one load at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

SOURCES = Path(__file__).with_name("load")
PATIENCE = 60.0  # seconds beside the measured time

Kind = Literal["small", "embedding", "large", "upload", "lockstep", "burst", "hold"]


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Result:
    """`operations` are answers, of event streams events. `errors` are connections lost or left unanswered,
    `wrong` are answers that are not what the upstream sent; `trouble` tells of the first of either. `latency`
    is counted from a request, or from when the upstream wrote an event, `wait` of an event from when the
    upstream began with its burst."""

    seconds: float
    operations: int
    bytes: int
    errors: int
    wrong: int
    trouble: str
    latency: Times | None
    wait: Times | None
    first: Times | None

    @property
    def is_right(self) -> bool:
        return not self.errors and not self.wrong

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Work:
    """It ends after `milliseconds`, or after so many `requests`. `pause_us`: each connection waits for a
    random time up to that before it asks again; `reconnect`: each request has a connection of its own."""

    kind: Kind
    connections: int
    milliseconds: int = 0
    requests: int = 0
    at_once: int = 1 << 20
    pause_us: int = 0
    reconnect: bool = False


class Load:
    """Raises `LoadError` where the program says no."""

    def __init__(self, program: Path, core: int | None = None) -> None:
        """On one processor core, where one is named."""
        self._process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self, where: str = "tcp:0") -> int:
        """Another address of the upstream, `tcp:PORT` or `unix:PATH`; returns the port. At `pass:PATH` other
        processes bring the sockets that they listen on."""
        port = int(self._answer(f"upstream {where}")["port"])
        if port < 0:
            raise LoadError(f"the upstream cannot listen on {where}")
        return port

    def close_idle(self, longest_us: int) -> None:
        """From now on the upstream closes idle connections, after a random time up to this (0: never)."""
        self._answer(f"idle {longest_us}")

    def run(self, port: int, work: Work, on_moment: Callable[[str], None] = lambda _: None) -> Result:
        """`on_moment` is called at the ends of the measured time, with "measuring" and "measured"."""
        return _result(
            self._answer(
                f"run {work.kind} port={port} connections={work.connections} at_once={work.at_once} "
                f"ms={work.milliseconds} requests={work.requests} pause_us={work.pause_us} "
                f"reconnect={int(work.reconnect)}",
                on_moment,
            )
        )

    def end(self) -> Result:
        """Closes the streams that a `hold` keeps open."""
        return _result(self._answer("end"))

    def _answer(self, command: str, on_moment: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
            on_moment(line.strip())
        raise LoadError(f"the load program has ended at: {command}")


class LoadError(RuntimeError):
    pass


def build(folder: Path) -> Path:
    """Compiles the program into `folder`. Raises `LoadError` with what the compiler says."""
    program = folder / "load"
    command = [
        os.environ.get("CC", "cc"),
        "-O2",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(program),
    ]
    try:
        done = subprocess.run(
            command + [str(path) for path in sorted(SOURCES.glob("*.c"))],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise LoadError(f"a C compiler is needed: {error}") from None
    if done.returncode:
        raise LoadError(done.stderr)
    return program


def _result(found: dict[str, Any]) -> Result:
    if "seconds" not in found:
        raise LoadError(found["trouble"])
    return Result(
        seconds=found["seconds"],
        operations=found["operations"],
        bytes=found["bytes"],
        errors=found["errors"],
        wrong=found["wrong"],
        trouble=found["trouble"],
        latency=_times(found["latency_us"]),
        wait=_times(found["wait_us"]),
        first=_times(found["first_us"]),
    )


def _times(found: dict[str, float] | None) -> Times | None:
    return None if found is None else Times(**found)
