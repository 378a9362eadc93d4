"""The table of `memoria bench`: phases -> text."""

from __future__ import annotations

from collections.abc import Sequence

from memoria.bench.figures import Phase, Times
from memoria.text import aligned

HEADER = ("", "EMBEDDINGS/S", "p50 / p99", "TOKENS/S", "FIRST TOKEN p50 / p99", "BETWEEN TOKENS p50 / p99")
UNKNOWN = "-"


def render_phases(phases: Sequence[Phase]) -> str:
    """A line for each phase, then what failed."""
    lines = [*aligned([HEADER, *(_row(phase) for phase in phases)])]
    lines += [
        f"{phase.name}: {phase.failures} requests failed, the first: {phase.failure}"
        for phase in phases
        if phase.failures
    ]
    return "\n".join(lines)


def _row(phase: Phase) -> tuple[str, ...]:
    embedding, generation = phase.embedding, phase.generation
    return (
        phase.name,
        _rate(embedding.rate) if embedding else UNKNOWN,
        _times(embedding.latency) if embedding else UNKNOWN,
        _rate(generation.rate) if generation else UNKNOWN,
        _times(generation.first_token) if generation else UNKNOWN,
        _times(generation.between_tokens) if generation else UNKNOWN,
    )


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(times: Times | None) -> str:
    if times is None:
        return UNKNOWN
    return f"{times.p50 * 1000:.3g} / {times.p99 * 1000:.3g} ms"
