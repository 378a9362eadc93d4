"""The status table: `Status` -> text."""

from __future__ import annotations

from memoria.admin.status import EngineStatus, GuardStatus, PlannedTerm, Status
from memoria.text import aligned, duration, gib, grouped

HEADER = ("ENGINE", "STATE", "SINCE", "RESTARTS", "GPU GiB", "KV", "RUN/WAIT", "REQ/S", "TTFT p95")
UNKNOWN = "-"
COLORS = {"ready": "32", "failed": "31", "held": "31", "backoff": "33", "suspect": "33"}


def render_status(status: Status, *, width: int, color: bool) -> str:
    """One line per engine, then one line for each that is not ready, with its reason and the next command,
    and what the latency guard does."""
    memory = "RAM GiB" if status.engines and status.engines[0].device == "host" else "GPU GiB"
    header = tuple(memory if title == "GPU GiB" else title for title in HEADER)
    table = aligned([header, *(_row(engine, status.at) for engine in status.engines)])
    lines = [table[0]]
    for line, engine in zip(table[1:], status.engines, strict=True):
        lines.append(_paint(line, engine.state) if color else line)
    lines += [f"{e.name}: {_standby(e)}" for e in status.engines if e.standby]
    lines += [f"{e.name}: {e.held} requests wait for a place" for e in status.engines if e.held]
    lines += [told for engine in status.engines if (told := _beside_the_plan(engine))]
    lines += [
        _reason(engine, status.at)[: max(width, 80) * 3]
        for engine in status.engines
        if engine.state != "ready"
    ]
    if status.guard is not None:
        lines.append(_guard(status.guard))
    return "\n".join(lines)


def _beside_the_plan(engine: EngineStatus) -> str | None:
    """Every term that the plan was wrong about by more than its estimates may be."""
    told = [_term(term) for term in engine.plan if term.notable]
    return f"{engine.name}: {'; '.join(told)}; `memoria plan` knows by now" if told else None


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
        UNKNOWN if engine.ttft_p95 is None else f"{engine.ttft_p95 * 1000:.0f} ms",
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
    if engine.hint and (waits or engine.state in ("backoff", "failed")):
        parts.append(engine.hint)
    return f"{engine.name}: {'; '.join(parts)}"


def _guard(guard: GuardStatus) -> str:
    gap = "" if guard.gap_p95 is None else f", p95 {guard.gap_p95 * 1000:.0f} ms"
    others = ", ".join(guard.neighbours)
    doing = "nobody is held back"
    if guard.limit is not None:
        times = "once" if guard.lowered == 1 else f"{guard.lowered} times"
        doing = f"{others} at most {guard.limit} at once, lowered {times}"
    return f"guard: {guard.engine} keeps to {guard.target * 1000:g} ms between tokens{gap}; {doing}"


def _paint(line: str, state: str) -> str:
    return f"\033[{COLORS.get(state, '36')}m{line}\033[0m"
