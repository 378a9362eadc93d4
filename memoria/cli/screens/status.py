"""The screen of `memoria status`: `Status` -> text. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from memoria.admin.status.status import EngineStatus, GuardStatus, PlannedTerm, Status
from memoria.cli.screens.layout import UNKNOWN, Column, facts, milliseconds, paint_state, table, wrapped
from memoria.text import duration, gib, grouped

COLUMNS = (
    Column("ENGINE", "ENGINE"),
    Column("STATE", "STATE"),
    Column("SINCE", "SINCE", 1),
    Column("RESTARTS", "RST", 5),
    Column("GPU GiB", "GiB", 2),
    Column("KV", "KV", 4),
    Column("RUN/WAIT", "R/W", 3),
    Column("REQ/S", "REQ/S", 6),
    Column("TTFT p95", "TTFT", 7),
    Column("TOTAL p95", "TOTAL", 8, extra=True),
    Column("TOKENS/S", "TOK/S", 9, extra=True),
)
LONGEST = 600  # characters of a sentence


def render_status(status: Status, *, width: int | None, color: bool) -> str:
    """One line per engine, then a sentence for each that is not ready, with the reason and the next step, and
    one for the latency guard. `width` None: as wide as it gets, each sentence on one line."""
    on_host = bool(status.engines) and status.engines[0].device == "host"
    columns = [replace(c, title="RAM GiB") if on_host and c.short == "GiB" else c for c in COLUMNS]
    head, *rows = table(columns, [_row(engine, status.at) for engine in status.engines], width)
    lines = [head]
    for row, engine in zip(rows, status.engines, strict=True):
        lines.append(paint_state(row, engine.state, color))
    for sentence in _sentences(status):
        lines += wrapped(sentence[:LONGEST], width)
    return "\n".join(lines)


def _sentences(status: Status) -> Iterator[str]:
    engines = status.engines
    yield from (f"{e.name}: {_standby(e)}" for e in engines if e.standby)
    yield from (f"{e.name}: {e.held} request{'s' * (e.held != 1)} queued" for e in engines if e.held)
    yield from (sentence for engine in engines if (sentence := _plan_errors(engine)))
    yield from (_reason(engine, status.at) for engine in engines if engine.state != "ready")
    if status.guard is not None:
        yield _guard(status.guard)


def _plan_errors(engine: EngineStatus) -> str | None:
    """The terms that the plan was further off than its estimates may be."""
    terms = [_term(term) for term in engine.plan if term.notable]
    return f"{engine.name}: {'; '.join(terms)}; `memoria plan` is updated" if terms else None


def _term(term: PlannedTerm) -> str:
    in_tokens = term.term == "kv_tokens"
    said, planned = ((grouped if in_tokens else gib)(size) for size in (term.said, term.planned))
    by = "" if term.error is None else f"{abs(term.error):.0%} "
    if in_tokens:
        more = "more" if term.said > term.planned else "fewer"
        return f"its KV cache holds {by}{more} tokens than planned, {said} instead of {planned}"
    what = "weights" if term.term == "weights_bytes" else "CUDA graphs"
    more = "more" if term.said > term.planned else "less"
    return f"its {what} take {by}{more} than planned, {said} instead of {planned} GiB"


def _row(engine: EngineStatus, now: float) -> tuple[str, ...]:
    used = UNKNOWN if engine.used_bytes is None else gib(engine.used_bytes)
    known = engine.running is not None
    return (
        engine.name,
        engine.state,
        duration(now - engine.since),
        str(engine.restarts),
        f"{used}/{gib(engine.budget_bytes)}",
        UNKNOWN if engine.kv_usage is None else f"{engine.kv_usage * 100:.0f} %",
        f"{engine.running}/{engine.waiting}" if known else UNKNOWN,
        UNKNOWN if engine.requests_per_second is None else f"{engine.requests_per_second:.1f}",
        milliseconds(engine.ttft_p95),
        milliseconds(engine.total_p95),
        UNKNOWN if engine.tokens_per_second is None else grouped(round(engine.tokens_per_second)),
    )


def _standby(engine: EngineStatus) -> str:
    memory = "" if engine.standby_bytes is None else f", {gib(engine.standby_bytes)} GiB of host memory"
    return f"standby {'waits at the gate' if engine.standby == 'waiting' else 'imports'}{memory}"


def _reason(engine: EngineStatus, now: float) -> str:
    parts = [engine.detail.removeprefix(f"{engine.name} ") or engine.state]
    if engine.state == "starting":
        progress = f" {engine.percent} %" if engine.percent is not None else ""
        parts = [parts[0] if engine.detail else f"{engine.phase or 'starting'}{progress}"]
    if engine.retry_at is not None:
        parts.append(f"retry in {max(0, round(engine.retry_at - now))} s")
    waits = engine.state == "starting" and engine.detail
    if engine.hint and (waits or facts(engine.state).crashed):
        parts.append(engine.hint)
    return f"{engine.name}: {'; '.join(parts)}"


def _guard(guard: GuardStatus) -> str:
    gap = "" if guard.gap_p95 is None else f", p95 {guard.gap_p95 * 1000:.0f} ms"
    others = ", ".join(guard.neighbours)
    doing = "no limit in force"
    if guard.limit is not None:
        times = "once" if guard.lowered == 1 else f"{guard.lowered} times"
        doing = f"{others} limited to {guard.limit} at once, lowered {times}"
    return f"guard: {guard.engine} keeps to {guard.target * 1000:g} ms between tokens{gap}; {doing}"
