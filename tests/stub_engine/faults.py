"""How a stub engine misbehaves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EVERY_ENGINE = "*"

# The first two and the last happen in the API server, the others in the engine core, behind the gate.
Step = Literal["importing", "configuring", "engine", "loading", "warming_up", "listening"]


@dataclass(frozen=True, slots=True)
class Faults:
    """The default is a healthy engine that starts at once. Times in seconds."""

    import_seconds: float = 0.0  # before the gate
    import_until: str = ""  # before the gate: until that file exists
    load_seconds: float = 0.0  # behind it
    load_until: str = ""  # behind it: until that file exists
    without_plugins: bool = False  # loads none, as a vLLM that does not know memoria's
    gpu_bytes: int = 0  # taken from the NVML stub (NVML_STUB_FILE) while its core lives
    memory_stays: bool = False  # a driver's bug: also when its core is dead
    context_bytes: int | None = None  # takes its fraction of the GPU, and this beside it, or refuses to start

    fail_at: Step | None = None
    exit_code: int = 1  # negative: killed by that signal
    log: tuple[str, ...] = ("RuntimeError: the stub was told to fail",)  # written before
    hang_at: Step | None = None

    leader_stays: float = 0.0  # when its core is dead: accepts no more, and ends so much later
    ignore_sigterm: bool = False  # the API server; the engine core always does
    grandchild: bool = False  # a process with a session of its own outlives everything
    stderr_bytes_per_second: int = 0

    asleep_bytes: int = 2**30  # kept of `gpu_bytes` while it sleeps
    sleep_fails: bool = False  # 500, when its memory is gone already
    sleep_hangs: bool = False
    wake_hangs: bool = False
    wake_takes_only: int | None = None  # holds so much, and fails: no room for the rest
    wrong_after_wake: bool = False
    reload_fails: bool = False  # of level 2: 500

    health: int = 200
    health_seconds: float = 0.0
    metrics_seconds: float = 0.0
    token_seconds: float = 0.0
    event_tokens: int = 1  # of a stream; vLLM merges what a slow reader has not taken yet
    prefill_chunks: int = 0  # before a first token: each takes as long as one, and fills the KV cache
    vanish_after_tokens: int | None = None  # the API server, in the middle of an answer
    cut_body: bool = False  # half of each JSON answer, then the connection closes


def read_faults(engine: str) -> Faults:
    path = os.environ.get("STUB_FAULTS")
    known = json.loads(Path(path).read_text()) if path else {}
    return Faults(**(known.get(engine) or known.get(EVERY_ENGINE) or {}))


def wait_for(file: str) -> None:
    while file and not Path(file).exists():
        time.sleep(0.01)
