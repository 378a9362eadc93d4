"""Both engines under load, alone and together: as they are, with the latency guard, both of that with CUDA
MPS; and what it takes to run one at a time instead."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil

from memoria.bench.figures import Phase
from memoria.bench.load import Endpoint, run_phase, run_phases
from memoria.cli.commands.bench import to_load
from tests.gpu.box import FRACTIONS, GpuBox, Wish, wait
from tests.integration.daemon import RunningDaemon


def together(box: GpuBox) -> dict[str, Any]:
    """As `memoria bench`: each engine alone, then both; then both again with a guard."""
    box.want()
    daemon = box.ready()
    found = _measured(box, daemon)
    daemon.stop()
    return found


def with_mps(box: GpuBox) -> dict[str, Any] | None:
    """The same under CUDA MPS, which memoria manages. None where its control daemon is not installed."""
    if box.mps_control is None:
        return None
    top = {"mps": True}
    box.want(Wish(top=top))
    daemon = box.ready()
    control = int(daemon.told("memoria", "mps_started").split()[-1])
    servers = psutil.Process(control).children()
    found = _measured(box, daemon, top)
    daemon.stop()
    return {"servers": len(servers), **found}


def sleep(box: GpuBox) -> dict[str, Any]:
    """Level 1 of vLLM's sleep mode: what the driver still counts of an engine asleep, and the seconds down
    and up. memoria compares the answers before and after. Level 2 reads weights again, which dummies lack."""
    return {"1": _slept(box, 1)}


def _slept(box: GpuBox, level: int) -> dict[str, Any]:
    keys = {"on_demand": True, "preload": True, "sleep_level": level}
    box.want(Wish({"generation": FRACTIONS["generation"]}, keys=keys))
    before = box.used_bytes()
    daemon = box.ready()  # dormant counts
    wait(lambda: daemon.engine("generation").state == "ready", "it is preloaded")
    awake = box.used_bytes()
    began = time.monotonic()
    assert box.call("sleep", "generation").returncode == 0
    wait(lambda: daemon.engine("generation").state not in {"ready", "dozing"}, "it sleeps", every=0.05)
    down, asleep = time.monotonic() - began, box.used_bytes()
    slept = daemon.engine("generation").state == "asleep"
    began = time.monotonic()
    assert box.call("wake", "generation").returncode == 0
    wait(lambda: daemon.engine("generation").state == "ready", "it is awake again", every=0.05)
    up = time.monotonic() - began
    failed = daemon.story("sleep_failed", "wake_failed", "wrong_after_wake")
    daemon.stop()
    return {
        "slept": slept,
        "awake_bytes": awake - before,
        "residual_bytes": asleep - before,
        "sleep_seconds": down,
        "wake_seconds": up,
        "failures": [what for _, what in failed],
    }


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


def _measured(box: GpuBox, daemon: RunningDaemon, top: dict[str, Any] | None = None) -> dict[str, Any]:
    """Without a guard, and then together with one that lets the gaps between tokens grow by half of what they
    are alone."""
    status = daemon.status()

    async def measure() -> list[Phase]:
        return [phase async for phase in run_phases(Endpoint(status.url), box.load, to_load(status))]

    phases = asyncio.run(measure())
    alone = next(e.between_tokens for phase in phases for e in phase.generation)
    assert alone is not None, phases
    guard = {"protect": "generation", "inter_token_ms": round(alone.p50 * 1500, 3)}
    box.want(Wish(top={**(top or {}), "guard": guard}))
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
