"""The screens of `memoria status` and `memoria top`: `Status` -> text. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from memoria.admin.status.status import (
    DeviceStatus,
    EngineStatus,
    GuardStatus,
    PlannedTerm,
    StartPart,
    Status,
)
from memoria.cli.screens.layout import (
    BOLD,
    UNKNOWN,
    Column,
    facts,
    milliseconds,
    paint,
    paint_state,
    shortened,
    table,
    wrapped,
)
from memoria.logs import printable
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
BESIDE_BAR = 34  # columns of figures, in `top`
SHORTEST_BAR, LONGEST_NAME = 8, 24  # columns


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


LETTERS: dict[StartPart, str] = {
    **{"fetch": "f", "queue": "·", "import": "i", "gate": "·", "load": "l", "compile": "c"},
    **{"profile": "p", "graphs": "g", "warm-up": "w"},
}
NARROWEST = 20  # columns of a timeline


def render_starts(status: Status, *, width: int | None) -> str:
    """Each engine's latest start on a common line of time, then the sums of its parts. What was fetched,
    imported or loaded at the same time stands one below the other."""
    engines = [engine for engine in status.engines if engine.start_spans]
    lines = [ready_line(status)]
    if not engines:
        return "\n".join(lines)
    began = min(engine.start_spans[0].began for engine in engines)
    end = max(span.began + span.seconds for engine in engines for span in engine.start_spans)
    names = min(LONGEST_NAME, max(len(engine.name) for engine in engines))
    cells = max(NARROWEST, (width or 100) - names - 2)
    scale = cells / max(end - began, 1e-9)
    for engine in engines:
        line = ""
        for span in engine.start_spans:
            first, last = (round((at - began) * scale) for at in (span.began, span.began + span.seconds))
            line = line.ljust(first)[:first] + LETTERS[span.part] * (last - first)
        lines += ["", f"{shortened(engine.name, names):{names}}  {line}".rstrip()]
        lines += [f"  {part}" for part in wrapped(start_parts(engine), None if width is None else width - 2)]
    return "\n".join(lines)


def ready_line(status: Status) -> str:
    if status.ready_after is None:
        return "not all engines have been ready since memoria's start"
    return f"all ready {status.ready_after:.1f} s after memoria's start"


def start_parts(engine: EngineStatus) -> str:
    """The longest parts of a start do not come first: their order is that of time."""
    sums: dict[StartPart, float] = {}
    for span in engine.start_spans:
        sums[span.part] = sums.get(span.part, 0.0) + span.seconds
    return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in sums.items() if seconds >= 0.05)


def render_top(status: Status, events: Sequence[dict[str, Any]], *, width: int, color: bool) -> str:
    """`events` as the API gives them, oldest first."""
    healthy = "healthy" if status.healthy else "degraded"
    left = f"memoria {status.version}  {status.url}  up {duration(status.uptime)}"
    left = shortened(left, width - len(healthy) - 2)
    title = f"{left}{healthy:>{max(len(healthy) + 2, width - len(left))}}"
    lines = [paint(title, BOLD, color), ""]
    for device in status.devices:
        lines += [*_device_bars(device, status.engines, width, color=color), ""]
    lines += render_status(status, width=width, color=color).splitlines()
    if events:
        lines.append("")
    for event in events:
        at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
        detail = f": {event['detail']}" if event["detail"] else ""
        lines.append(shortened(printable(f"{at}  {event['subject']}  {event['what']}{detail}"), width))
    return "\n".join(lines)


def _device_bars(
    device: DeviceStatus, engines: Sequence[EngineStatus], width: int, *, color: bool
) -> list[str]:
    """The device as a whole, then the share of each engine, to the same scale."""
    here = [engine for engine in engines if engine.device == device.label]
    longest = max(map(len, ("others", *(engine.name for engine in here))))
    names = min(longest, LONGEST_NAME, max(SHORTEST_BAR, width - SHORTEST_BAR - BESIDE_BAR))
    cells = max(SHORTEST_BAR, width - names - BESIDE_BAR)
    known = [engine.used_bytes for engine in here if engine.used_bytes is not None]
    used = "-" if device.used_bytes is None else gib(device.used_bytes)
    in_use = f"{used} of {gib(device.total_bytes)} GiB in use"
    name = shortened(device.name, width - len(device.label) - len(in_use) - 4)
    lines = [f"{device.label}  {name}  {in_use}"]
    for engine in here:
        taken = engine.used_bytes or 0
        full = round(cells * taken / device.total_bytes)
        budget = max(full, round(cells * engine.budget_bytes / device.total_bytes))
        bar = "█" * full + "░" * (budget - full) + "·" * (cells - budget)
        figures = "-" if engine.used_bytes is None else gib(engine.used_bytes)
        kv = "  -" if engine.kv_usage is None else f"{engine.kv_usage * 100:3.0f} %"
        name = shortened(engine.name, names)
        line = f"  {name:{names}}  {bar}  {figures:>5} of {gib(engine.budget_bytes):>5} GiB  KV {kv}"
        lines.append(paint_state(line, engine.state, color))
    if device.used_bytes is not None and len(known) == sum(engine.pid is not None for engine in here):
        others = max(0, device.used_bytes - sum(known))
        full = round(cells * others / device.total_bytes)
        lines.append(f"  {'others':{names}}  {'▒' * full}{'·' * (cells - full)}  {gib(others):>5} GiB")
    return lines
