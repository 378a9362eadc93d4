"""What the stub processes did, one JSON line each, appended to the file that STUB_EVENTS names."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is on the monotonic clock, which all processes of a machine share.

    Names: spawned, core spawned, through the gate, loaded, ready, sigterm, aborted, grandchild.
    """

    name: str
    engine: str
    pid: int
    at: float
    detail: str = ""


def engine_name() -> str:
    return os.environ.get("MEMORIA_ENGINE", "")


def record(name: str, detail: object = "") -> None:
    if path := os.environ.get("STUB_EVENTS"):
        event = Event(name, engine_name(), os.getpid(), time.monotonic(), str(detail))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(asdict(event)).encode() + b"\n")
        finally:
            os.close(descriptor)


def read_events(path: Path) -> list[Event]:
    return [Event(**json.loads(line)) for line in path.read_text().splitlines()]
