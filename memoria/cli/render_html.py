"""The plan as one page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from memoria.cli.render_outcomes import Term, terms_of, verdict
from memoria.config.model import Config
from memoria.errors import Problem
from memoria.plan.budgets import DevicePlan
from memoria.plan.outcome import Outcomes
from memoria.plan.plan import Plan
from memoria.text import fraction_text, gib

_STYLE = """
:root { color-scheme: light dark; --weights: #3b6fb6; --step: #c98a2b; --graphs: #8a6bbe; --kv: #3f9c6b; }
body { font: 15px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
.bar { display: flex; height: 1.4rem; border: 1px solid #8886; border-radius: 4px; overflow: hidden; }
.bar span { display: block; } table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; }
td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; }
.weights { background: var(--weights); } .step { background: var(--step); }
.graphs { background: var(--graphs); } .kv { background: var(--kv); }
.mark { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }
.problem { border-left: 4px solid #c0392b; padding-left: .8rem; }
.ok { color: #2e8b57; } .quiet { opacity: .7; }
"""
_CLASSES = {"weights": "weights", "one step": "step", "process": "step", "graphs": "graphs", "KV cache": "kv"}


def render_html(config: Config, plan: Plan, outcomes: Outcomes, problems: tuple[Problem, ...]) -> str:
    name = escape(config.path.name if config.path else "built in")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>memoria plan: {name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>memoria plan: {name}</h1>",
    ]
    for device in plan.devices:
        parts += _device(device, outcomes)
    kind = "problem" if outcomes.unknown else "ok"
    said = [_problem(problem) for problem in problems]
    parts += said or [f"<p class='{kind}'>{escape(verdict(outcomes))}</p>"]
    return "\n".join([*parts, "</body></html>", ""])


def _device(plan: DevicePlan, outcomes: Outcomes) -> Iterator[str]:
    device, total = plan.device, plan.device.usable_bytes
    yield f"<h2>{escape(device.label)}: {escape(device.name)}, {gib(total)} GiB</h2>"
    for budget in plan.budgets:
        size = f"{fraction_text(budget.fraction)}, {gib(budget.requested_bytes)} GiB"
        yield f"<h3>{escape(budget.engine)} <span class='quiet'>{size}</span></h3>"
        outcome = outcomes.known.get(budget.engine)
        if outcome is None:
            problem = outcomes.unknown[budget.engine]
            yield f"<p class='quiet'>{escape(problem.what)}. {escape(problem.hint or '')}</p>"
            continue
        terms = terms_of(outcome)
        segments = (
            f"<span class='{_CLASSES[term.name]}' style='width:{_percent(term.size, total)}%'></span>"
            for term in terms
        )
        yield f"<div class='bar'>{''.join(segments)}</div>"
        yield f"<p class='quiet'>{escape(outcome.files.name)}</p><table>{''.join(map(_row, terms))}</table>"
        for caveat in outcome.footprint.caveats:
            yield f"<p class='quiet'>{escape(caveat)}.</p>"
    if plan.unplanned_bytes > 0:
        yield f"<p class='quiet'>Unplanned: {gib(plan.unplanned_bytes)} GiB</p>"


def _row(term: Term) -> str:
    mark = f"<span class='mark {_CLASSES[term.name]}'></span>"
    cells = (mark + escape(term.name), f"{gib(term.size)} GiB", escape(term.note))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _percent(size: int, total: int) -> str:
    return f"{max(0, size) / total * 100:.2f}"


def _problem(problem: Problem) -> str:
    hint = f"<br><span class='quiet'>{escape(problem.hint)}</span>" if problem.hint else ""
    return f"<p class='problem'>{escape(problem.what)}{hint}</p>"
