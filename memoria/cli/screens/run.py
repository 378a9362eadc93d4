"""The lines of `memoria run`: a snapshot -> text. Pure."""

from __future__ import annotations

from memoria.config.model import EngineConfig
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.text import duration, gib, grouped


def row(width: int, name: str, text: str) -> str:
    """A line of the screen: columns are two spaces apart, names as wide as the longest."""
    return f"{name:{width}}  {text}"


def engine_line(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    """What stands behind the engine's name: its state, and the facts that matter in it."""
    return f"{snapshot.state.value:8}  {_facts(snapshot, engine, used_bytes, now)}".rstrip()


def live_line(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    """The same on a terminal, where the line is redrawn while the engine starts."""
    if snapshot.state is not State.STARTING or snapshot.phase is None:
        return engine_line(snapshot, engine, used_bytes, now)
    progress = f" {snapshot.percent} %" if snapshot.percent is not None else ""
    waits = f"; {snapshot.detail}" if snapshot.detail else ""
    return f"starting  {snapshot.phase.value}{progress}  {duration(now - snapshot.since)}{waits}"


def _facts(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    match snapshot.state:
        case State.STARTING:
            port = f", port {engine.port}" if engine.port else ""
            return f"pid {snapshot.pid}{port}" if snapshot.pid else ""
        case State.READY:
            return "  ".join(_ready(snapshot, used_bytes))
        case State.BACKOFF:
            wait = max(0, round((snapshot.retry_at or now) - now))
            return f"{snapshot.detail}; retry in {wait} s"
        case _:
            return snapshot.detail


def _ready(snapshot: EngineSnapshot, used_bytes: int | None) -> list[str]:
    parts = []
    if snapshot.start_seconds is not None:
        parts.append(f"{snapshot.start_seconds:.1f} s")
    if used_bytes is not None:
        parts.append(f"{gib(used_bytes)} GiB")
    figures = snapshot.figures
    if figures.kv_tokens is not None:
        kv = f"KV cache {grouped(figures.kv_tokens)} tokens"
        if figures.concurrency is not None and figures.max_model_len is not None:
            kv += f", {figures.concurrency:.1f}x at {figures.max_model_len}"
        parts.append(kv)
    return parts


def explanation(snapshot: EngineSnapshot, tail: list[str]) -> list[str]:
    """Under a failing engine: what to do, and the last lines of its log."""
    lines = []
    if snapshot.diagnosis is not None and snapshot.diagnosis.hint:
        lines.append(f"hint: {snapshot.diagnosis.hint}")
    if tail:
        lines.append(f"from its log (memoria logs {snapshot.name}):")
        lines += [f"  {line}" for line in tail]
    return lines
