"""The screen of `memoria plan`: outcomes -> text. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memoria.cli.screens.check import BAR_CELLS, awake_together, shown
from memoria.cli.screens.layout import BOLD, CYAN, DIM, GREEN, RED, paint, shortened
from memoria.config.model import Config
from memoria.plan.budgets import DevicePlan
from memoria.plan.outcome import Outcome, Outcomes
from memoria.plan.plan import Plan
from memoria.plan.wishes import Choice
from memoria.text import GIB, aligned, fraction_text, gib, grouped

DTYPES = {
    "BF16": "bf16",
    "F16": "f16",
    "F32": "f32",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "I8": "int8",
    "I32": "packed int",
    "U8": "packed 4 bit",
}
# A budget's bar, in the order of its terms: weights, a step, graphs, the KV cache.
CELLS = "▓▒▒█"
BUDGET_MARK, BEYOND = "│", "›"


@dataclass(frozen=True, slots=True)
class Term:
    """A line below an engine; `size` and its error are in bytes."""

    name: str
    size: int
    note: str
    bar: int = 0


def render_outcomes(
    config: Config, plan: Plan, outcomes: Outcomes, width: int, color: bool, *, ok: bool
) -> str:
    """The screen without a final newline. A narrow `width` shortens bars and notes."""
    lines = [f"{paint('config', BOLD, color)}  {shown(config.path) if config.path else 'built in'}"]
    for device in plan.devices:
        lines += ["", *_device(device, outcomes, width, color)]
    if ok:
        lines += ["", paint(verdict(outcomes), RED if outcomes.unknown else GREEN, color)]
    return "\n".join(lines)


def render_choices(choices: Iterable[Choice], *, written: bool) -> Iterator[str]:
    """`choices` is not empty."""
    rows = [(choice.engine, fraction_text(choice.fraction), choice.reason) for choice in choices]
    yield "fractions written into the file:" if written else "fractions chosen:"
    yield from (f"  {line}" for line in aligned(rows))


def terms_of(outcome: Outcome) -> list[Term]:
    """In the order in which an engine allocates them."""
    terms, settings = outcome.terms, outcome.footprint.settings
    estimate = "" if terms.learned else " (estimate)"
    bar = terms.bar_bytes
    step = "Python, torch and their libraries" if settings.on_cpu else _step_note(outcome)
    found = [
        Term("weights", terms.weights_bytes, _weights_note(outcome)),
        Term("process" if settings.on_cpu else "one step", terms.step_bytes, step + estimate, bar),
    ]
    if terms.graph_bytes:
        found.append(Term("graphs", terms.graph_bytes, "CUDA graphs" + estimate))
    settled = outcome.budget.kv_cache_bytes is not None
    return [*found, Term("KV cache", outcome.kv_bytes, _kv_note(outcome), 0 if settled else bar)]


def _device(plan: DevicePlan, outcomes: Outcomes, width: int, color: bool) -> Iterator[str]:
    device = plan.device
    total = f"{gib(device.usable_bytes)} GiB"
    yield f"{paint(device.label, BOLD, color)}  {device.name}, {total}"
    for budget in plan.budgets:
        head = f"  {budget.engine}  {fraction_text(budget.fraction)}  {gib(budget.requested_bytes)} GiB"
        outcome = outcomes.known.get(budget.engine)
        if outcome is None:
            yield paint(head, BOLD, color)
            yield from _wrapped(outcomes.unknown[budget.engine].what, width, color)
            yield from _wrapped(outcomes.unknown[budget.engine].hint or "", width, color)
            continue
        room = width - len(head) - 2
        yield f"{paint(head, BOLD, color)}  {shortened(outcome.files.name, max(1, room))}"
        yield "    " + _bar(outcome, plan, width, color)
        for term in terms_of(outcome):
            line = f"    {term.name:<9} {figure(term.size):>6}{bar_text(term, outcome)} GiB  {term.note}"
            wrong = term.name == "KV cache" and not outcome.fits
            yield paint(shortened(line, width), RED, color and wrong)
        for caveat in outcome.remarks:
            yield from _wrapped(caveat, width, color)
    yield from (paint(f"  {line}", DIM, color) for line in awake_together(plan, width - 2))
    if plan.unplanned_bytes > 0:
        contexts = f", contexts take about {gib(plan.context_bytes)} of it" if plan.context_bytes else ""
        yield paint(f"  unplanned  {gib(plan.unplanned_bytes)} GiB{contexts}", DIM, color)


def segments(outcome: Outcome) -> tuple[int, int, int, int]:
    """Bytes of a bar: weights, one step, graphs, KV cache. A KV cache that does not fit counts as the
    smallest with which vLLM would start, so that the bar shows by how much it exceeds the budget."""
    terms, kv_bytes = outcome.terms, max(0, outcome.kv_bytes)
    if not outcome.fits:
        kv_bytes = max(kv_bytes, outcome.kv_cache.least_bytes)
    return terms.weights_bytes, terms.step_bytes, terms.graph_bytes, kv_bytes


def _bar(outcome: Outcome, plan: DevicePlan, width: int, color: bool) -> str:
    """On the scale of the whole device, with a mark at the end of the budget. What does not fit lies beyond
    the mark; an arrow means that it exceeds the device, too."""
    cells = min(max(width - 9, BAR_CELLS.start), 60)
    total = plan.device.usable_bytes

    def cell(size: int) -> int:
        return round(cells * min(size, total) / total)

    text, reached = "", 0
    for glyph, size in zip(CELLS, segments(outcome), strict=True):
        reached += size
        text += glyph * (cell(reached) - len(text))
    budget = min(max(1, cell(outcome.budget.requested_bytes)), cells)
    if reached > outcome.budget.requested_bytes and len(text) <= budget < cells:
        text = text.ljust(budget, CELLS[-1]) + CELLS[-1]  # by less than a cell
    if reached > total:
        text = text[:-1] + BEYOND
    text = text or CELLS[0]
    inside, beyond = text[:budget], text[budget:]
    return (
        paint(inside, CYAN, color)
        + paint("·" * (budget - len(inside)), DIM, color)
        + BUDGET_MARK
        + paint(beyond, RED, color)
        + paint("·" * (cells - budget - len(beyond)), DIM, color)
    )


def _weights_note(outcome: Outcome) -> str:
    weights = outcome.footprint.weights
    named = " + ".join(dict.fromkeys(DTYPES.get(name, name.lower()) for name, _ in weights.by_dtype[:3]))
    if outcome.terms.learned:
        return f"{named}, as loaded at an earlier start"
    if weights.exact:
        return f"{named}, from the hub" if outcome.files.source == "the hub" else named
    source = "the index" if outcome.files.index_bytes else "config.json"
    return f"{named}, from {source}: not downloaded"


def _step_note(outcome: Outcome) -> str:
    settings = outcome.footprint.settings
    return f"{grouped(settings.max_num_batched_tokens)} tokens, {grouped(settings.max_num_seqs)} sequences"


def _kv_note(outcome: Outcome) -> str:
    if not outcome.kv_cache.groups:
        return "left over: an encoder needs no KV cache"
    if not outcome.starts:
        return f"too small for one request of {grouped(outcome.max_model_len)} tokens"
    capacity = outcome.capacity
    if not outcome.fits:
        return f"{gib(outcome.taken_bytes - outcome.budget.requested_bytes)} GiB more than the budget holds"
    return (
        f"{grouped(capacity.tokens)} tokens: {capacity.concurrency:.1f} requests "
        f"of {grouped(outcome.max_model_len)}"
    )


_FITS = "ok: every engine fits"


def verdict(outcomes: Outcomes) -> str:
    """Of a plan without problems."""
    if not outcomes.unknown:
        doubtful = [name for name, outcome in outcomes.known.items() if outcome.is_doubtful]
        return f"doubtful: {', '.join(doubtful)}; every engine fits by the estimate" if doubtful else _FITS
    return f"not planned: {', '.join(outcomes.unknown)}; everything else fits"


def figure(size: int) -> str:
    """GiB; small terms have two decimals, so that none reads 0.0."""
    return gib(size) if abs(size) >= GIB else f"{size / GIB:.2f}"


def bar_text(term: Term, outcome: Outcome) -> str:
    """The error of a term, or room for it where another term of the engine has one."""
    text = f" ± {outcome.terms.bar_bytes / GIB:.1f}" if outcome.terms.bar_bytes else ""
    return text if term.bar else " " * len(text)


def _wrapped(text: str, width: int, color: bool) -> Iterator[str]:
    for line in textwrap.wrap(text, max(20, width - 4), break_long_words=False, break_on_hyphens=False):
        yield "    " + paint(line, DIM, color)
