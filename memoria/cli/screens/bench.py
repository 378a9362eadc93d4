"""The screen of `memoria bench`: phases -> text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memoria.bench.figures import Embedding, Generation, Phase, Times
from memoria.bench.load import Load
from memoria.logs import printable
from memoria.text import aligned, short_time

EMBEDDING = ("ENGINE", "LOADED", "TEXTS/S", "KEPT", "ANSWER p50", "p99")
GENERATION = ("ENGINE", "LOADED", "TOKENS/S", "KEPT", "FIRST p50", "p99", "NEXT p50", "p99")
UNKNOWN = "-"


def render_phases(phases: Sequence[Phase], load: Load) -> str:
    """A table per kind of engine, an engine's phases below each other, then notes. KEPT is the share of the
    rate that the engine has alone."""
    embedding = [(phase, engine) for phase in phases for engine in phase.embedding]
    generation = [(phase, engine) for phase in phases for engine in phase.generation]
    tables = [
        _table(EMBEDDING, [(*_columns(*one, phases), *_times(one[1].latency)) for one in embedding]),
        _table(
            GENERATION,
            [
                (*_columns(*one, phases), *_times(one[1].first_token), *_times(one[1].between_tokens))
                for one in generation
            ],
        ),
        "\n".join(_notes(phases, load)),
    ]
    return "\n\n".join(filter(None, tables))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Sorted by engine; phases keep their order."""
    engines = list(dict.fromkeys(row[0] for row in rows))
    ordered = sorted(rows, key=lambda row: engines.index(row[0]))
    return "\n".join(aligned([header, *ordered], right=range(2, len(header)))) if rows else ""


def _columns(
    phase: Phase, engine: Embedding | Generation, phases: Sequence[Phase]
) -> tuple[str, str, str, str]:
    is_alone = len(phase.engines) == 1
    alone = next(
        (e.rate for p in phases if len(p.engines) == 1 for e in p.engines if e.engine == engine.engine), 0.0
    )
    kept = UNKNOWN if is_alone or not alone else f"{engine.rate / alone:.0%}".replace("%", " %")
    return engine.engine, "alone" if is_alone else "together", _rate(engine.rate), kept


def _notes(phases: Sequence[Phase], load: Load) -> Iterator[str]:
    last = {engine.engine: engine for phase in phases for engine in phase.engines}
    for name, engine in last.items():
        yield f"{name}: {_described(engine, load)}"
    if last:
        yield f"Each phase was measured for {load.seconds:g} s after {load.warm_up:g} s of warm-up."
    for phase in phases:
        for engine in phase.engines:
            where = phase.name if len(phase.engines) == 1 else f"{phase.name}, {engine.engine}"
            if isinstance(engine, Generation) and not engine.counted:
                yield f"{where}: vLLM sent no token counts: these are events"
            if failed := engine.failures.count:
                requests = "1 request failed" if failed == 1 else f"{failed} requests failed"
                yield f"{where}: {requests}, the first: {printable(engine.failures.first or '')}"


def _described(engine: Embedding | Generation, load: Load) -> str:
    if isinstance(engine, Embedding):
        size = _size(engine.text_tokens, load.text_words)
        return f"{load.embedders} clients, {load.texts} texts per request, {size} each"
    size = _size(engine.prompt_tokens, load.prompt_words)
    return f"{load.streams} streams, {load.max_tokens} tokens each, prompts of {size}"


def _size(tokens: float | None, words: int) -> str:
    return f"{words} words" if tokens is None else f"{tokens:.0f} tokens"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(times: Times | None) -> tuple[str, str]:
    return (UNKNOWN, UNKNOWN) if times is None else (short_time(times.p50), short_time(times.p99))
