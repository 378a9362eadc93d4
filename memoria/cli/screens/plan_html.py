"""The plan as a self-contained page: no script, no font, no request. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from memoria.cli.screens.plan import Term, figure, segments, terms_of, verdict
from memoria.config.model import Config
from memoria.errors import Problem
from memoria.plan.budgets import DevicePlan
from memoria.plan.outcome import Outcome, Outcomes
from memoria.plan.plan import Plan
from memoria.plan.wishes import Choice
from memoria.text import fraction_text, gib

_STYLE = """
:root { color-scheme: light dark; --weights: #3b6fb6; --step: #c98a2b; --graphs: #8a6bbe; --kv: #3f9c6b; }
body { font: 15px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
.bar { position: relative; display: flex; height: 1.4rem; margin-top: 1.3rem;
  border: 1px solid #8886; border-radius: 4px; }
.bar span { display: block; flex: none; }
.bar .over { background-image: repeating-linear-gradient(45deg, #c0392b 0 4px, transparent 4px 8px);
  outline: 1px solid #c0392b; }
.bar b { position: absolute; top: -.3rem; bottom: -.3rem; border-left: 2px solid currentColor; }
.bar em { position: absolute; bottom: 100%; right: 0; padding-right: .3rem; font-size: .75rem;
  font-style: normal; line-height: 1.1rem; white-space: nowrap; }
.bar em.right { right: auto; left: 0; padding: 0 0 0 .3rem; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
td:nth-child(-n+2) { white-space: nowrap; }
td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; }
.weights { background: var(--weights); } .step { background: var(--step); }
.graphs { background: var(--graphs); } .kv { background: var(--kv); }
.mark { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }
.problem { border-left: 4px solid #c0392b; padding-left: .8rem; overflow-wrap: anywhere; }
.problem code { display: block; white-space: pre-wrap; }
.ok { color: #2e8b57; } .quiet { opacity: .7; }
"""
_CLASSES = {"weights": "weights", "one step": "step", "process": "step", "graphs": "graphs", "KV cache": "kv"}


def render_html(
    config: Config,
    plan: Plan | None,
    outcomes: Outcomes,
    problems: Sequence[Problem],
    choices: Sequence[Choice] = (),
) -> str:
    """`choices` are the fractions chosen for `auto`. `plan` is None if not every fraction could be chosen:
    then only the problems are shown."""
    name = escape(config.path.name if config.path else "built in")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>memoria plan: {name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>memoria plan: {name}</h1>",
    ]
    for device in plan.devices if plan is not None else ():
        parts += _device(device, outcomes)
    if choices:
        parts.append("<h2>Fractions chosen</h2>")
        parts.append(f"<table>{''.join(map(_choice, choices))}</table>")
    kind = "problem" if outcomes.unknown else "ok"
    shown = [_problem(problem) for problem in problems]
    parts += (
        ["<h2>What does not fit</h2>", *shown]
        if shown
        else [f"<p class='{kind}'>{escape(verdict(outcomes))}</p>"]
    )
    return "\n".join([*parts, "</body></html>", ""])


def _device(plan: DevicePlan, outcomes: Outcomes) -> Iterator[str]:
    device = plan.device
    yield f"<h2>{escape(device.label)}: {escape(device.name)}, {gib(device.usable_bytes)} GiB</h2>"
    for budget in plan.budgets:
        size = f"{fraction_text(budget.fraction)}, {gib(budget.requested_bytes)} GiB"
        yield f"<h3>{escape(budget.engine)} <span class='quiet'>{size}</span></h3>"
        outcome = outcomes.known.get(budget.engine)
        if outcome is None:
            problem = outcomes.unknown[budget.engine]
            yield f"<p class='quiet'>{escape(problem.what)}. {escape(problem.hint or '')}</p>"
            continue
        yield _bar(outcome, device.usable_bytes)
        rows = "".join(map(_row, terms_of(outcome)))
        yield f"<p class='quiet'>{escape(outcome.files.name)}</p><table>{rows}</table>"
        for caveat in outcome.remarks:
            yield f"<p class='quiet'>{escape(caveat)}.</p>"
    if plan.unplanned_bytes > 0:
        contexts = f", contexts take about {gib(plan.context_bytes)} of it" if plan.context_bytes else ""
        yield f"<p class='quiet'>Unplanned: {gib(plan.unplanned_bytes)} GiB{contexts}</p>"


def _bar(outcome: Outcome, total: int) -> str:
    """On the scale of the whole device; the part beyond the budget's mark is hatched."""
    budget, begin, spans, sizes = min(outcome.budget.requested_bytes, total), 0, "", segments(outcome)
    for name, size in zip(("weights", "step", "graphs", "kv"), sizes, strict=True):
        end = min(begin + size, total)
        for inside, low, high in ((True, begin, min(end, budget)), (False, max(begin, budget), end)):
            if high > low:
                over = "" if inside else " over"
                spans += f"<span class='{name}{over}' style='width:{_percent(high - low, total)}%'></span>"
        begin = end
    side = "" if 2 * budget > total else " class='right'"
    needed = f", it needs {gib(sum(sizes))}" if sum(sizes) > budget else ""
    mark = f"<b style='left:{_percent(budget, total)}%'><em{side}>budget {gib(budget)} GiB{needed}</em></b>"
    return f"<div class='bar'>{spans}{mark}</div>"


def _row(term: Term) -> str:
    mark = f"<span class='mark {_CLASSES[term.name]}'></span>"
    cells = (mark + escape(term.name), f"{figure(term.size)} GiB", escape(term.note))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _choice(choice: Choice) -> str:
    cells = (choice.engine, fraction_text(choice.fraction), choice.reason)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _percent(size: int, total: int) -> str:
    return f"{size / total * 100:.2f}"


def _problem(problem: Problem) -> str:
    where = "".join(f"<code>{escape(line)}</code>" for line in problem.where)
    hint = f"<span class='quiet'>{escape(problem.hint)}</span>" if problem.hint else ""
    return f"<p class='problem'>{escape(problem.what)}{where or ('<br>' if hint else '')}{hint}</p>"
