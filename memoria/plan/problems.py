"""Everything that stands against the models in their budgets: for certain, or by the planner's estimates.

Certain is only what vLLM itself must come to. It takes the weights from the request before anything else
(`determine_available_memory`, vllm/v1/worker/gpu_worker.py) and ends where nothing is left for the KV cache;
so where the weights alone, counted from their headers, are more than the request, no start can succeed. One
step's peak and the graphs are estimates, and so is a model of which anything is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memoria.config.model import Config
from memoria.errors import Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import DevicePlan
from memoria.plan.outcome import Outcome, Outcomes
from memoria.plan.plan import Plan
from memoria.plan.remedies import device_problem, length_problem, misfit
from memoria.plan.wishes import wish_problem

# Loaders that put every counted tensor on the GPU as it is.
_PLAIN_LOADERS = ("auto", "dummy", "hf", "safetensors")


@dataclass(frozen=True, slots=True)
class Judged:
    """`certain`: no start can succeed. `likely`: the estimates say so, and estimates may be wrong."""

    certain: tuple[Problem, ...]
    likely: tuple[Problem, ...]


def judge(config: Config, plan: Plan, outcomes: Outcomes) -> Judged:
    """Without the plan's own problems, which need no model."""
    certain: list[Problem] = []
    likely: list[Problem] = []
    for device, outcome in _judged(plan, outcomes):
        if (length := length_problem(config, outcome)) is not None:
            likely.append(length)
        if (found := misfit(config, device, outcome, outcomes.known)) is not None:
            (certain if never_starts(outcome, device.device) else likely).append(found)
    together = (device_problem(device, outcomes.known) for device in plan.devices)
    wishes = (wish_problem(config, outcome) for outcome in outcomes.known.values())
    return Judged(tuple(certain), (*likely, *(problem for problem in (*together, *wishes) if problem)))


def plan_problems(config: Config, plan: Plan, outcomes: Outcomes) -> tuple[Problem, ...]:
    """What stays wrong whoever else holds memory; that a plan is not for."""
    judged = judge(config, plan, outcomes)
    return plan.config_problems + judged.certain + judged.likely


def never_starts(outcome: Outcome, device: Device) -> bool:
    """Whether vLLM cannot start, by figures that are no estimates. Never where it might: an encoder has no
    KV cache that must fit, a KV cache that is given is taken whatever the fraction, a host's memory is
    counted by what a process holds of it, a tower for images may be left out."""
    footprint = outcome.footprint
    settings, shape = footprint.settings, footprint.shape
    counted = (
        footprint.weights.exact
        and not footprint.caveats
        and not outcome.terms.learned
        and settings.tensor_parallel == 1
        and str(outcome.engine.vllm_args.get("load_format") or "auto") in _PLAIN_LOADERS
        # quantised while loading, which only the method itself knows exactly
        and (settings.quantization is None or shape.quantization is not None)
        and not any(key in outcome.files.config for key in ("text_config", "llm_config", "vision_config"))
    )
    checked = bool(outcome.kv_cache.groups) and outcome.budget.kv_cache_bytes is None and not device.is_host
    return counted and checked and footprint.weights.total_bytes > outcome.budget.requested_bytes


def _judged(plan: Plan, outcomes: Outcomes) -> Iterator[tuple[DevicePlan, Outcome]]:
    for device in plan.devices:
        for budget in device.budgets:
            # A KV cache that is larger than the budget by itself is among the configuration's problems.
            if budget.engine in outcomes.known and (budget.kv_cache_bytes or 0) <= budget.requested_bytes:
                yield device, outcomes.known[budget.engine]
