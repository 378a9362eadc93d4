"""What starts show: memory, the plan's terms, the race for the KV cache, and how much just fits. Bytes and
seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from memoria.admin.status.status import EngineStatus
from tests.gpu import by_hand
from tests.gpu.box import FRACTIONS, MIB, GpuBox, Wish, core_of, wait
from tests.integration.daemon import RunningDaemon

PASSED = "gate_passed"  # of the journal


def first_start(box: GpuBox) -> dict[str, Any]:
    """One start of both engines, for several parts of the report: NVML's view before, between and after
    (`memory`), the plan beside what vLLM said (`planned`), and each engine's KV cache (`kv_tokens`)."""
    box.want()
    checked = box.check()
    assert checked["ok"], checked["problems"]
    before = checked["devices"][0]["free_bytes"]
    planned = box.plan()["devices"][0]["engines"]
    box.hold_loads()
    daemon = box.start()
    first, between = _free_between(box, daemon)
    box.until_all_ready(daemon)
    names = [engine["name"] for engine in planned]
    wait(lambda: all(box.record(name) for name in names), "every start is on record")
    status = daemon.status()
    both = status.devices[0].free_bytes
    daemon.stop()
    after = box.check()["devices"][0]
    assert both is not None
    held = {first: before - between, _other(first): between - both}
    return {
        "memory": {
            "total": after["total_bytes"],
            "free": {"before": before, "one": between, "both": both, "after": after["free_bytes"]},
            "engines": {engine.name: _memory(engine, held[engine.name]) for engine in status.engines},
        },
        "planned": {engine["name"]: _beside(engine, box.record(engine["name"])) for engine in planned},
        "kv_tokens": {engine.name: engine.kv_tokens for engine in status.engines},
    }


def _free_between(box: GpuBox, daemon: RunningDaemon) -> tuple[str, int]:
    """The first engine, and what is free when it is ready and the second holds nothing. In life the second
    passes the gate at that very moment, so its core is stopped meanwhile."""
    wait(lambda: bool(daemon.story(PASSED)), "an engine has passed the gate", every=0.01)
    first = daemon.story(PASSED)[0][0]
    second = _other(first)
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
    free = status.devices[0].free_bytes
    assert not (box.on_gpu and held), "the second engine was faster than the stop"
    assert free is not None
    return first, free


def _other(name: str) -> str:
    (other,) = FRACTIONS.keys() - {name}
    return other


def _memory(engine: EngineStatus, held: int) -> dict[str, Any]:
    """`held`: by how much less of the device was free; `used`: what the driver says of the processes, None
    where it does not tell. The context is outside the fraction."""
    return {
        "requested": engine.budget_bytes,
        "held": held,
        "used": engine.used_bytes,
        "outside_the_fraction": held - engine.budget_bytes,
        "kv_tokens": engine.kv_tokens,
        "start_seconds": engine.start_seconds,
    }


def _beside(plan: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """By term: both sizes, and by how much of the plan vLLM's differs; None for what vLLM did not say."""
    assert not plan["learned"]
    terms: dict[str, Any] = {"step_bytes": {"planned": plan["step_bytes"]}}  # vLLM says nothing of that
    for term in ("weights_bytes", "graph_bytes", "kv_bytes", "kv_tokens"):
        said, wanted = record[term], plan[term]
        error = round(said / wanted - 1, 4) if said is not None and wanted else None
        terms[term] = {"planned": wanted, "actual": said, "error": error}
    return terms


def at_once(box: GpuBox) -> dict[str, Any]:
    """Both engines started at once, by hand."""
    box.want()
    return {name: said.to_json() for name, said in by_hand.start_together(box, FRACTIONS).items()}


def boundary(box: GpuBox) -> dict[str, Any]:
    """The largest size that `memoria check` accepts for one engine on the free GPU, the largest that vLLM
    starts with, and every start that was tried."""
    box.want()
    total = box.plan()["devices"][0]["total_bytes"]  # as CUDA gives it: what fractions are fractions of
    return _boundary(box, "embedding", total, total // 2, total)


def beside(box: GpuBox) -> dict[str, Any]:
    """The same for the second engine, while the first one runs."""
    box.want()
    total = box.plan()["devices"][0]["total_bytes"]
    with by_hand.started(box, ["embedding"]) as first:
        assert first["embedding"].ready, first
        free = box.check()["devices"][0]["free_bytes"]
        return {"free": free, **_boundary(box, "generation", total, free // 2, free)}


def _boundary(box: GpuBox, name: str, total: int, low: int, high: int) -> dict[str, Any]:
    """Between `low`, which is taken to fit, and `high`."""
    tried: list[dict[str, Any]] = []

    def want(size: int) -> None:
        box.want(Wish({name: round(size / total, 7)}, {"gpu_limit": 1}))

    def accepted(size: int) -> bool:
        want(size)
        return bool(box.check()["ok"])

    def starts(size: int) -> bool:
        want(size)
        said = by_hand.start_together(box, [name])[name]
        tried.append({"size": size, **said.to_json()})
        return said.ready

    check_step, vllm_step = box.steps_bytes
    allowed = _largest(accepted, low, high, check_step)
    fine = starts(allowed)
    limit = _largest(starts, allowed, high, vllm_step) if fine else None
    return {
        "total": total,
        "check_accepts": allowed,
        "check_step": check_step,
        "vllm_starts_with_it": fine,
        "vllm_starts_up_to": limit,
        "vllm_step": vllm_step,
        "difference": None if limit is None else limit - allowed,
        "tried": tried,
    }


def _largest(holds: Callable[[int], bool], low: int, high: int, step: int) -> int:
    """By halves, in MiB, until what holds and what does not are `step` apart; `low` is taken to hold."""
    low, high = low // MIB * MIB, -(-high // MIB) * MIB
    while high - low > step:
        middle = (low + high) // 2 // MIB * MIB
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
