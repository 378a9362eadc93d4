"""Both engines under load, alone and together: as they are, with the latency guard, both of that with CUDA
MPS; and what it takes to run one at a time instead."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from memoria.bench.figures import Phase
from memoria.bench.load import Endpoint, run_phase, run_phases
from memoria.cli.commands.bench import to_load
from tests.gpu.box import FRACTIONS, GpuBox, Wish, wait
from tests.integration.daemon import RunningDaemon

MPS_PATIENCE = 30.0  # seconds, for its control daemon


def together(box: GpuBox) -> dict[str, Any]:
    """As `memoria bench`: each engine alone, then both; then both again with a guard."""
    box.want()
    daemon = box.ready()
    found = _measured(box, daemon)
    daemon.stop()
    return found


def with_mps(box: GpuBox) -> dict[str, Any] | None:
    """The same under CUDA MPS; its control daemon is started for this and stopped again. None where there is
    none."""
    control = box.mps_control
    if control is None:
        return None
    pipes = Path(box.runtime.parent) / "mps"
    pipes.mkdir()
    own: dict[str, str | None] = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(pipes)}
    box.extra = own
    try:
        with _mps(control, pipes, box.env({})) as ask:
            box.want()
            daemon = box.start()
            try:
                box.until_all_ready(daemon)
                servers = ask("get_server_list").split()
                found = _measured(box, daemon)
                daemon.stop()
            finally:
                daemon.kill()  # the control daemon waits for its clients
    finally:
        box.extra = {}
    return {"servers": len(servers), **found}


@contextmanager
def _mps(control: str, pipes: Path, env: dict[str, str]) -> Iterator[Any]:
    """The control daemon; it is gone afterwards, whatever happens."""

    def ask(command: str) -> str:
        return subprocess.run(
            [control],
            input=f"{command}\n",
            text=True,
            env=env,
            check=True,
            capture_output=True,
            timeout=MPS_PATIENCE,
        ).stdout

    subprocess.run([control, "-d"], env=env, check=True, timeout=MPS_PATIENCE)
    pid = int((pipes / "nvidia-cuda-mps-control.pid").read_text())
    process = psutil.Process(pid)
    try:
        yield ask
    finally:
        with suppress(subprocess.SubprocessError):
            ask("quit")
        below = [process, *process.children(recursive=True)] if process.is_running() else []
        _, left = psutil.wait_procs(below, timeout=MPS_PATIENCE)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def swap(box: GpuBox) -> list[dict[str, Any]]:
    """The alternative to both at once: from the one model ready to the other ready, one engine at a time."""
    names = list(FRACTIONS)
    swaps = []
    daemon = _alone(box, names[0])
    for old, new in ((names[0], names[1]), (names[1], names[0])):
        began = time.monotonic()
        daemon.stop()
        stopped = time.monotonic()
        daemon = _alone(box, new)
        ready = time.monotonic()
        swaps.append(
            {"from": old, "to": new, "stop": stopped - began, "start": ready - stopped, "swap": ready - began}
        )
    daemon.stop()
    return swaps


def _alone(box: GpuBox, name: str) -> RunningDaemon:
    box.want(Wish({name: FRACTIONS[name]}))
    return box.ready()


def _measured(box: GpuBox, daemon: RunningDaemon) -> dict[str, Any]:
    """Without a guard, and then together with one that lets the gaps between tokens grow by half of what they
    are alone."""
    status = daemon.status()

    async def measure() -> list[Phase]:
        return [phase async for phase in run_phases(Endpoint(status.url), box.load, to_load(status))]

    phases = asyncio.run(measure())
    alone = next(e.between_tokens for phase in phases for e in phase.generation)
    assert alone is not None, phases
    guard = {"protect": "generation", "inter_token_ms": round(alone.p50 * 1500, 3)}
    box.want(Wish(top={"guard": guard}))
    daemon.signal(signal.SIGHUP)
    wait(lambda: daemon.status().guard is not None, "the guard is on duty")
    guarded = asyncio.run(run_phase("together", Endpoint(status.url), box.load, to_load(daemon.status())))
    kept = daemon.status().guard
    assert kept is not None
    return {
        "load": asdict(box.load),
        "phases": _shown(phases),
        "guard": guard | {"lowered": kept.lowered, "limit": kept.limit},
        "guarded": _shown([guarded]),
    }


def _shown(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Without the 99 points of each curve."""
    shown = [phase.to_json() for phase in phases]
    for phase in shown:
        for engine in phase["generation"]:
            del engine["gaps"]
    return shown
