"""vLLM as a person starts it without memoria: the same command lines, no gate, all at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from memoria.config.load import load
from memoria.engine.command import StartFacts, build_spec
from memoria.engine.phases import StartFigures, read_line
from memoria.vllm_env.find import find
from memoria.vllm_env.home import data_home
from tests.gpu.box import PATIENCE, GpuBox

READY = "Application startup complete"


def start_together(box: GpuBox, names: list[str]) -> dict[str, dict[str, Any]]:
    """Starts the engines of the box's file, waits until each is ready or gone, and kills them. What each said
    of its KV cache, or the last lines of one that failed."""
    config = load(box.file, os.environ)
    install = find(config.vllm, data_home(os.environ), config.device)
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    for name in names:
        facts = StartFacts(
            start_id=f"hand-{name}",
            socket_dir=str(box.runtime.parent),
            gate_path=None,
            supervisor_pid=os.getpid(),
            plugin_dir=None,
            environ=box.env({}),
        )
        spec = build_spec(config, config.engine(name), install, facts)
        log = box.folder / f"by-hand-{name}.log"
        Path(f"{box.runtime.parent}/hand-{name}.sock").unlink(missing_ok=True)
        with log.open("wb") as output:
            running[name] = (
                subprocess.Popen(
                    spec.argv,
                    env=dict(spec.env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                ),
                log,
            )
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not all(_is_decided(*pair) for pair in running.values()):
            time.sleep(0.2)
        return {name: _said(*pair) for name, pair in running.items()}
    finally:
        for process, _ in running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_decided(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is not None or READY in log.read_text(errors="replace")


def _said(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    text = log.read_text(errors="replace")
    figures = StartFigures()
    for line in text.splitlines():
        if seen := read_line(line):
            figures = figures.with_observation(seen)
    if READY in text:
        return {"kv_tokens": figures.kv_tokens, "kv_gib": figures.kv_gib}
    return {"failed": process.poll(), "kv_gib": figures.kv_gib, "log": text.splitlines()[-5:]}
