"""vLLM as a person starts it without memoria: the same command lines, no gate, all at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from memoria.config.load import load
from memoria.vllm.command import StartFacts, build_spec
from memoria.vllm.install.find import data_home, find
from memoria.vllm.log_lines import StartFigures, read_line
from tests.gpu.box import PATIENCE, GpuBox, wait

READY = "Application startup complete"
_ERROR = re.compile(r"\b\w*(?:Error|Exception): .*")


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine said of its KV cache until it was ready, or its first error. `seconds` until either."""

    ready: bool
    seconds: float
    kv_tokens: int | None
    kv_gib: float | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    began: float

    def said(self) -> Said | None:
        """None while it is starting."""
        ended = self.process.poll() is not None  # first: what it said last is in the log then
        text = self.log.read_text(errors="replace")
        ready = READY in text
        if not (ready or ended or time.monotonic() - self.began > PATIENCE):
            return None
        figures = StartFigures()
        for line in re.split(r"[\r\n]", text):
            if seen := read_line(line):
                figures = figures.with_observation(seen)
        return Said(
            ready,
            time.monotonic() - self.began,
            figures.kv_tokens,
            figures.kv_gib,
            None if ready else _error(text, ended=ended),
        )


def start_together(box: GpuBox, names: Iterable[str]) -> dict[str, Said]:
    """Starts the engines of the box's file, waits until each is ready or gone, kills them, and returns when
    their memory is free again."""
    with started(box, names) as said:
        return said


@contextmanager
def started(box: GpuBox, names: Iterable[str]) -> Iterator[dict[str, Said]]:
    """The same, with something to do while those that are ready live."""
    before = box.used_bytes()
    running: dict[str, _Running] = {}
    said: dict[str, Said] = {}
    try:
        for name in names:
            running[name] = _spawn(box, name)
        while len(said) < len(running):
            for name in running.keys() - said.keys():
                if (found := running[name].said()) is not None:
                    said[name] = found
            time.sleep(0.05)
        yield {name: said[name] for name in running}
    finally:
        box.bury(_kill(running.values()))
    wait(lambda: box.used_bytes() <= before + box.slack_bytes, "their memory is free again", every=0.05)


def _spawn(box: GpuBox, name: str) -> _Running:
    environ = box.env({})
    config = load(box.file, environ)
    install = find(config.vllm, data_home(environ), config.device)
    facts = StartFacts(
        start_id=f"hand-{name}",
        socket_dir=str(box.runtime.parent),
        gate_path=None,
        supervisor_pid=os.getpid(),
        plugin_dir=None,
        environ=environ,
        device_uuid=box.uuid,
    )
    spec = build_spec(config, config.engine(name), install, facts)
    Path(f"{box.runtime.parent}/hand-{name}.sock").unlink(missing_ok=True)
    log = box.folder / f"by-hand-{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            spec.argv,
            cwd=box.folder,
            env=dict(spec.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Running(process, log, time.monotonic())


def _kill(running: Iterable[_Running]) -> list[int]:
    """The processes below the leaders, all of them dead."""
    below: list[psutil.Process] = []
    for one in running:
        with suppress(psutil.NoSuchProcess):
            below += psutil.Process(one.process.pid).children(recursive=True)
    for one in running:
        with suppress(ProcessLookupError):  # it has ended with all of its own, which may be what was wanted
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
    psutil.wait_procs(below, timeout=PATIENCE)
    return [process.pid for process in below]


def _error(text: str, *, ended: bool) -> str:
    """The first error is the cause; vLLM's later ones are its echo."""
    if found := _ERROR.search(text):
        return found[0]
    return "it ended" if ended else f"not ready in {PATIENCE:g} s"
