"""What is measured on a GPU; each part returns what the report says of it. Bytes and seconds."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from memoria.admin.status import EngineStatus, Status
from memoria.bench.figures import Phase
from memoria.bench.load import Endpoint, Engine, Load, run_phase
from memoria.cli.bench import measure
from tests.gpu import by_hand
from tests.gpu.box import FRACTIONS, GpuBox, Wish, core_of, parsed, wait
from tests.integration.daemon import RunningDaemon

CLOSE_BYTES = 256 * 2**20  # what may be missing when an engine's memory counts as given back
STEPS = 6  # of a binary search
PASSED = "passed the gate"  # of the journal


def heavy(dry: bool) -> Load:
    seconds, warm_up = (1.0, 0.2) if dry else (20.0, 3.0)
    streams, tokens = (4, 16) if dry else (32, 256)
    return Load(seconds, warm_up, streams, 128, tokens, embedders=streams, texts=8, text_words=128)


def memory(box: GpuBox) -> dict[str, Any]:
    """NVML's view before, between and after the starts; what each engine asked for, and holds."""
    box.want()
    free = [parsed(box.check())["devices"][0]["free_bytes"]]
    box.hold_loads()
    daemon = box.start()
    free.append(_free_between(box, daemon))
    wait(lambda: daemon.status().healthy, "all engines are ready")
    status = daemon.status()
    free.append(_free(status))
    daemon.stop()
    after = parsed(box.check())["devices"][0]
    return {
        "device": after["name"],
        "total": after["total_bytes"],
        "free": [*free, after["free_bytes"]],
        "engines": {engine.name: _engine(engine) for engine in status.engines},
    }


def _free_between(box: GpuBox, daemon: RunningDaemon) -> int | None:
    """What is free when the first engine is ready and the second holds nothing. In life the second passes the
    gate at that very moment, so its core is stopped meanwhile."""
    wait(lambda: bool(daemon.story(PASSED)), "an engine has passed the gate", every=0.01)
    first = daemon.story(PASSED)[0][0]
    (second,) = FRACTIONS.keys() - {first}
    wait(lambda: bool(core_of(daemon.leader(second))), "the second engine's core is there", every=0.01)
    core = core_of(daemon.leader(second))
    os.kill(core, signal.SIGSTOP)
    box.let_load()
    try:
        wait(lambda: daemon.engine(first).state == "ready", "the first engine is ready")
        status = daemon.status()
    finally:
        os.kill(core, signal.SIGCONT)
    held = next(engine.used_bytes for engine in status.engines if engine.name == second)
    assert not held, "the second engine was faster than the stop"
    return _free(status)


def _free(status: Status) -> int | None:
    return status.devices[0].free_bytes


def _engine(engine: EngineStatus) -> dict[str, Any]:
    used = engine.used_bytes
    return {
        "requested": engine.budget_bytes,
        "used": used,
        "outside_the_fraction": None if used is None else used - engine.budget_bytes,
        "kv_tokens": engine.kv_tokens,
        "start_seconds": engine.start_seconds,
    }


def planned(box: GpuBox) -> dict[str, Any]:
    """The plan, made before anything starts, and what each engine said of itself after its start."""
    box.want()
    before = parsed(box.plan())["devices"][0]["engines"]
    daemon = box.ready()
    names = [engine["name"] for engine in before]
    wait(lambda: all(box.record(name) for name in names), "every start is on record")
    daemon.stop()
    return {engine["name"]: _beside(engine, box.record(engine["name"])) for engine in before}


def _beside(plan: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """By term: both sizes, and by how much of the plan vLLM's differs; None for what vLLM did not say."""
    assert not plan["learned"]
    terms: dict[str, Any] = {"step_bytes": {"planned": plan["step_bytes"]}}  # vLLM says nothing of that
    for term in ("weights_bytes", "graph_bytes", "kv_bytes", "kv_tokens"):
        said, wanted = record[term], plan[term]
        error = round(said / wanted - 1, 4) if said is not None and wanted else None
        terms[term] = {"planned": wanted, "actual": said, "error": error}
    return terms


def race(box: GpuBox) -> dict[str, Any]:
    """KV tokens of each engine: started by memoria, and both at once by hand."""
    box.want()
    daemon = box.ready()
    serial = {engine.name: engine.kv_tokens for engine in daemon.status().engines}
    daemon.stop()
    at_once = by_hand.start_together(box, list(FRACTIONS))
    return {"by_memoria": serial, "at_once_by_hand": at_once}


def boundary(box: GpuBox) -> dict[str, Any]:
    """The largest fraction that `memoria check` accepts for one engine, the largest vLLM starts with, and
    whether vLLM starts with what was accepted."""

    def accepted(fraction: float) -> bool:
        box.want(Wish({"embedding": fraction}, {"gpu_limit": 1}))
        return box.check().returncode == 0

    def starts(fraction: float) -> bool:
        box.want(Wish({"embedding": fraction}, {"gpu_limit": 1}))
        return "kv_tokens" in by_hand.start_together(box, ["embedding"])["embedding"]

    allowed = _largest(accepted, 0.5, 1.0)
    fine = starts(allowed)
    limit = _largest(starts, allowed, 1.0) if fine and not box.dry else None
    return {"check_accepts": allowed, "vllm_starts_with_it": fine, "vllm_starts_up_to": limit}


def _largest(holds: Any, low: float, high: float) -> float:
    """By halves; `low` is taken to hold. To four digits."""
    for _ in range(STEPS):
        middle = round((low + high) / 2, 4)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def kill(box: GpuBox, daemon: RunningDaemon, name: str, victim: str) -> dict[str, Any]:
    """SIGKILL with both engines loaded, until the killed one is ready again: when its memory is back, and
    what its neighbour felt."""
    before = daemon.status()
    engine = daemon.engine(name)
    (other,) = (e for e in before.engines if e.name != name)
    leader = daemon.leader(name)
    core = core_of(leader)
    released: list[float] = []
    kept = (before.devices[0].used_bytes or 0) - (engine.used_bytes or 0) + CLOSE_BYTES

    def is_released() -> bool:
        return (daemon.status().devices[0].used_bytes or 0) <= kept

    load = heavy(box.dry)
    with _Loaded(daemon, engine, load) as own, _Loaded(daemon, other, load) as neighbour:
        began = time.monotonic()
        os.kill(leader if victim == "leader" else core, signal.SIGKILL)
        watch = threading.Thread(
            target=lambda: released.append(wait(is_released, "the memory is back", every=0.01))
        )
        watch.start()
        if victim == "leader":
            box.bury(core)
        wait(lambda: daemon.engine(name).state != "ready", "the end is seen", every=0.01)
        wait(lambda: daemon.engine(name).state == "ready", "the engine is back", every=0.01)
        ready = time.monotonic() - began
        watch.join()
    return {
        "victim": f"{name} {victim}",
        "released_after": released[0],
        "ready_after": ready,
        "restarts": daemon.engine(name).restarts - engine.restarts,
        "own_failures": own.failures,
        "neighbour_pid_kept": daemon.engine(other.name).pid == other.pid,
        "neighbour_failures": neighbour.failures,
        "neighbour_answers": neighbour.answers,
    }


class _Loaded:
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
    def answers(self) -> int:
        """Texts embedded, or tokens made."""
        kinds = ((phase.seconds, phase.embedding or phase.generation) for phase in self._phases)
        return round(sum(seconds * kind.rate for seconds, kind in kinds if kind))

    def __enter__(self) -> _Loaded:
        self._thread.start()
        name = self._engine.name
        wait(lambda: self._daemon.engine(name).in_flight > 0, f"{name} is loaded", every=0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        target = Engine(self._engine.name, self._engine.models[0])
        embedding, generation = (target, None) if self._engine.runner == "pooling" else (None, target)
        endpoint = Endpoint(self._daemon.status().url)
        while not self._over.is_set():
            phase = run_phase("load", endpoint, self._load, embedding=embedding, generation=generation)
            self._phases.append(asyncio.run(phase))


def together(box: GpuBox, *, guard_ms: float | None = None) -> list[dict[str, Any]]:
    """`memoria bench`: each engine alone, then both."""
    guard = {"guard": {"protect": "generation", "inter_token_ms": guard_ms}} if guard_ms else {}
    box.want(Wish(top=guard))
    daemon = box.ready()
    engines = {e.name: Engine(e.name, e.models[0]) for e in daemon.status().engines}
    endpoint = Endpoint(daemon.status().url)
    phases = asyncio.run(measure(endpoint, heavy(box.dry), engines["embedding"], engines["generation"]))
    daemon.stop()
    return [phase.to_json() | {"generation": _without_curve(phase)} for phase in phases]


def _without_curve(phase: Phase) -> dict[str, Any] | None:
    generation = phase.to_json()["generation"]
    return None if generation is None else {k: v for k, v in generation.items() if k != "gaps"}


def with_mps(box: GpuBox) -> list[dict[str, Any]] | None:
    """The same under CUDA MPS, its daemon started for this and stopped again; None where there is none."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or box.dry:
        return None
    pipes = Path(box.runtime.parent) / "mps"
    pipes.mkdir()
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(pipes)}
    subprocess.run([control, "-d"], env={**os.environ, **own}, check=True)
    try:
        box.extra = dict(own)
        return together(box)
    finally:
        box.extra = {}
        subprocess.run([control], input="quit\n", text=True, env={**os.environ, **own}, check=False)


def swap(box: GpuBox) -> dict[str, float]:
    """The alternative to both at once: from the one model ready to the other ready, one engine at a time."""
    box.want(Wish({"embedding": FRACTIONS["embedding"]}))
    daemon = box.ready()
    began = time.monotonic()
    daemon.stop()
    stopped = time.monotonic()
    box.want(Wish({"generation": FRACTIONS["generation"]}))
    other = box.ready()
    ready = time.monotonic()
    other.stop()
    return {"stop": stopped - began, "start": ready - stopped, "swap": ready - began}
