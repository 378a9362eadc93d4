"""Every reason why a model does not fit its budget, each with the smallest changes that make it fit.

A problem is certain only where vLLM itself must fail. It subtracts the weights from the request before
anything else (`determine_available_memory`, vllm/v1/worker/gpu_worker.py) and exits where nothing is left for
the KV cache; so where the weights alone, counted from their headers, exceed the request, no start can
succeed. A step's peak and the graphs are estimates, and so is any model of which something is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from memoria.config.model import Config
from memoria.errors import Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import (
    DevicePlan,
    largest_fraction,
    requested_bytes,
    smallest_fraction,
    spoken_name,
)
from memoria.plan.footprint.kv_dtype import is_wide
from memoria.plan.outcome import Outcome, Outcomes, changed
from memoria.plan.plan import Plan
from memoria.plan.wishes import granting_bytes, wish_problem
from memoria.text import GIB, aligned, fraction_text, gib, grouped

# Loaders that put every counted tensor on the GPU as it is.
_PLAIN_LOADERS = ("auto", "dummy", "hf", "safetensors")
# Tokens. A shorter context is of no use, and is not proposed.
_SHORTEST_USEFUL = 256
_SEQUENCES = (256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Misfits:
    """`certain`: no start can succeed. `likely`: the estimates say so, and estimates may be wrong."""

    certain: tuple[Problem, ...]
    likely: tuple[Problem, ...]


def find_misfits(config: Config, plan: Plan, outcomes: Outcomes) -> Misfits:
    """Problems of the models in their budgets; the plan's own, which need no model, are not repeated."""
    certain: list[Problem] = []
    likely: list[Problem] = []
    for device, outcome in _comparable(plan, outcomes):
        if (length := _length_problem(config, outcome)) is not None:
            likely.append(length)
        if (found := _misfit(config, device, outcome, outcomes.known)) is not None:
            (certain if _never_starts(outcome, device.device) else likely).append(found)
    together = (_device_problem(device, outcomes.known) for device in plan.devices)
    wishes = (wish_problem(config, outcome) for outcome in outcomes.known.values())
    return Misfits(tuple(certain), (*likely, *(problem for problem in (*together, *wishes) if problem)))


def plan_problems(config: Config, plan: Plan, outcomes: Outcomes) -> tuple[Problem, ...]:
    """All problems except memory that other processes hold, which changes between plan and start."""
    misfits = find_misfits(config, plan, outcomes)
    return plan.config_problems + misfits.certain + misfits.likely


def _comparable(plan: Plan, outcomes: Outcomes) -> Iterator[tuple[DevicePlan, Outcome]]:
    for device in plan.devices:
        for budget in device.budgets:
            # A KV cache that exceeds the budget by itself is already among the plan's own problems.
            if budget.engine in outcomes.known and (budget.kv_cache_bytes or 0) <= budget.requested_bytes:
                yield device, outcomes.known[budget.engine]


def _never_starts(outcome: Outcome, device: Device) -> bool:
    """Whether vLLM cannot start, by exact figures alone. False wherever it might: an encoder needs no KV
    cache, a fixed KV cache is allocated whatever the fraction, a host's memory is measured by what a process
    uses, a vision tower may not be loaded."""
    footprint = outcome.footprint
    settings, shape = footprint.settings, footprint.shape
    counted = (
        footprint.weights.exact
        and not footprint.caveats
        and not outcome.terms.learned
        and settings.tensor_parallel == 1
        and not (settings.max_loras or settings.draft_tokens)
        and str(outcome.engine.vllm_args.get("load_format") or "auto") in _PLAIN_LOADERS
        # of weights quantised while loading, only the method itself knows the exact size
        and (settings.quantization is None or shape.quantization is not None)
        and not any(key in outcome.files.config for key in ("text_config", "llm_config", "vision_config"))
    )
    checked = bool(outcome.kv_cache.groups) and outcome.budget.kv_cache_bytes is None and not device.is_host
    return counted and checked and footprint.weights.total_bytes > outcome.budget.requested_bytes


def _misfit(
    config: Config, plan: DevicePlan, outcome: Outcome, outcomes: Mapping[str, Outcome]
) -> Problem | None:
    """None where vLLM would start and stay within its budget. `outcomes` holds every known engine, by name: a
    neighbour may have memory to spare."""
    if outcome.fits:
        return None
    ways = tuple(_remedies(config, plan, outcome, outcomes))
    doubt = f" (± {outcome.terms.bar_bytes / GIB:.1f} GiB: it may start)" if outcome.is_doubtful else ""
    return Problem(_what(outcome) + doubt, _where(config, outcome, "gpu_memory_utilization"), _hint(ways))


def _length_problem(config: Config, outcome: Outcome) -> Problem | None:
    """vLLM refuses more than the model's own length (`_get_and_verify_max_len`, vllm/config/model.py)."""
    longest = outcome.footprint.settings.longest
    if longest is None or outcome.max_model_len <= longest:
        return None
    return Problem(
        f"max_model_len of {outcome.engine.name} is {grouped(outcome.max_model_len)} tokens, its model was "
        f"made for {grouped(longest)}",
        _where(config, outcome, "max_model_len"),
        f"set max_model_len to {longest} or less (`env: {{VLLM_ALLOW_LONG_MAX_MODEL_LEN: 1}}` makes vLLM "
        "accept it, but answers may be nonsense)",
    )


def _where(config: Config, outcome: Outcome, key: str) -> tuple[str, ...]:
    mark = config.where("engines", outcome.engine.name, key)
    return (str(mark) if mark else outcome.engine.name,)


def _device_problem(plan: DevicePlan, outcomes: Mapping[str, Outcome]) -> Problem | None:
    """Engines whose fixed KV caches push them over their budgets, and together over the device."""
    beyond = [outcomes[budget.engine] for budget in plan.awake if budget.engine in outcomes]
    excess = sum(outcome.taken_bytes - outcome.budget.requested_bytes for outcome in beyond)
    taken = plan.needed_bytes + excess
    if not excess or taken <= plan.device.usable_bytes:
        return None
    contexts = " with their CUDA contexts" if plan.context_bytes else ""
    rows = [(outcome.engine.name, f"{gib(outcome.taken_bytes)} GiB") for outcome in beyond]
    return Problem(
        f"the engines will take {gib(taken)} GiB{contexts}, {spoken_name(plan.device)} has "
        f"{gib(plan.device.usable_bytes)} GiB in all",
        aligned(rows, right={1}),
        f"lower kv_cache_memory_bytes by {gib(taken - plan.device.usable_bytes)} GiB in total",
    )


def _remedies(
    config: Config, plan: DevicePlan, outcome: Outcome, outcomes: Mapping[str, Outcome]
) -> Iterator[str]:
    """Changes each of which is enough, the one that clients do not notice first; where none is, the two that
    are together."""
    single = tuple(_single(config, plan, outcome, outcomes))
    yield from single or _both(config, plan, outcome)


def _single(
    config: Config, plan: DevicePlan, outcome: Outcome, outcomes: Mapping[str, Outcome]
) -> Iterator[str]:
    device = plan.device
    if fraction := _larger_fraction(config, plan, outcome):
        yield f"raise gpu_memory_utilization to {fraction_text(fraction)}"
    elif (moved := _from_neighbour(config, plan, outcome, outcomes)) is not None:
        yield moved
    if outcome.budget.kv_cache_bytes is not None:
        yield from _other_cache(outcome)
    longest = 0 if outcome.kv_cache.least_blocks else _longest(outcome, outcome.kv_bytes)
    if not outcome.starts and _SHORTEST_USEFUL <= longest < outcome.max_model_len:
        yield f"set max_model_len to {longest} or less"
    wide = not device.is_host and is_wide(outcome.footprint.settings.kv_dtype)
    if wide and changed(outcome, device, kv_cache_dtype="fp8").fits:
        yield "set kv_cache_dtype to fp8"
    if seqs := _fewer_sequences(outcome, device):
        yield f"set max_num_seqs to {seqs}"
    if tokens := _fewer_tokens(outcome, device):
        yield f"set max_num_batched_tokens to {tokens}"


def _from_neighbour(
    config: Config, plan: DevicePlan, outcome: Outcome, outcomes: Mapping[str, Outcome]
) -> str | None:
    """Takes what is missing from the neighbour with the most to spare beyond its own needs and wish. A
    neighbour whose size is written in bytes keeps it."""
    if (needed := _raised(plan, outcome)) is None:
        return None
    missing = needed - _room(config, plan, outcome)
    best: tuple[Decimal, Outcome, Decimal] | None = None
    for budget in plan.budgets:
        other = outcomes.get(budget.engine)
        if other is None or other is outcome or not other.fits or other.engine.gpu_memory is not None:
            continue
        least = smallest_fraction(granting_bytes(other), plan.device)
        spare = budget.fraction - least if least is not None else Decimal(0)
        if spare >= missing and (best is None or spare > best[0]):
            best = spare, other, budget.fraction - missing
    if best is None:
        return None
    _, other, lowered = best
    return (
        f"set gpu_memory_utilization of {other.engine.name}, which has that to spare, to "
        f"{fraction_text(lowered)} and of {outcome.engine.name} to {fraction_text(needed)}"
    )


def _other_cache(outcome: Outcome) -> Iterator[str]:
    """Another `kv_cache_memory_bytes`: what the budget leaves, or the minimum that vLLM starts with."""
    room = outcome.budget.requested_bytes - outcome.terms.fixed_bytes
    if max(1, outcome.kv_cache.least_bytes) > room:
        return
    if outcome.starts:
        yield f"set kv_cache_memory_bytes to {room} or less"
    else:
        yield f"set kv_cache_memory_bytes to {outcome.kv_cache.least_bytes}"


def _both(config: Config, plan: DevicePlan, outcome: Outcome) -> Iterator[str]:
    """All the memory there is, and the longest context that fits in it."""
    fraction = _room(config, plan, outcome)
    if fraction <= outcome.budget.fraction or outcome.budget.kv_cache_bytes is not None:
        return
    left = requested_bytes(plan.device.usable_bytes, fraction) - outcome.terms.fixed_bytes
    longest = _longest(outcome, left)
    if longest >= _SHORTEST_USEFUL:
        raised = f"raise gpu_memory_utilization to {fraction_text(fraction)}"
        yield f"{raised} and set max_model_len to {longest} or less"


def _longest(outcome: Outcome, kv_bytes: int) -> int:
    """The longest context, in tokens, that fits in `kv_bytes` and that the model accepts; 0 for none."""
    if kv_bytes <= 0:
        return 0
    fitting = outcome.footprint.kv_cache.longest(kv_bytes)
    return min(fitting, outcome.footprint.settings.longest or fitting)


def _room(config: Config, plan: DevicePlan, outcome: Outcome) -> Decimal:
    """The largest fraction that the other engines leave."""
    others = plan.fraction - outcome.budget.fraction
    if outcome.budget.on_demand:
        others = sum((budget.fraction for budget in plan.residents), Decimal(0))
    return min(config.gpu_limit, largest_fraction(plan, plan.device.usable_bytes)) - others


def _larger_fraction(config: Config, plan: DevicePlan, outcome: Outcome) -> Decimal | None:
    """The smallest sufficient hundredth, where the limit and the device leave room for it."""
    needed = _raised(plan, outcome)
    return needed if needed is not None and needed <= _room(config, plan, outcome) else None


def _raised(plan: DevicePlan, outcome: Outcome) -> Decimal | None:
    """The smallest sufficient hundredth, where that is more than the engine has and would help."""
    if outcome.budget.kv_cache_bytes is not None and not outcome.starts:
        return None
    needed = smallest_fraction(outcome.needed_bytes, plan.device)
    return needed if needed is not None and needed > outcome.budget.fraction else None


def _fewer_sequences(outcome: Outcome, device: Device) -> int | None:
    now = outcome.footprint.settings.max_num_seqs
    return next((n for n in _SEQUENCES if n < now and changed(outcome, device, max_num_seqs=n).fits), None)


def _fewer_tokens(outcome: Outcome, device: Device) -> int | None:
    now = outcome.footprint.settings.max_num_batched_tokens
    halves = [now >> shift for shift in range(1, 6) if now >> shift >= _SHORTEST_USEFUL]
    return next((n for n in halves if changed(outcome, device, max_num_batched_tokens=n).fits), None)


def _what(outcome: Outcome) -> str:
    name, budget, weights = (
        outcome.engine.name,
        gib(outcome.budget.requested_bytes),
        outcome.terms.weights_bytes,
    )
    if weights > outcome.budget.requested_bytes:
        return f"the weights of {name} alone are {gib(weights)} GiB, its budget is {budget} GiB"
    if outcome.kv_bytes <= 0:
        return (
            f"{name} needs {gib(outcome.terms.fixed_bytes)} GiB before its KV cache, "
            f"its budget is {budget} GiB"
        )
    if outcome.starts:
        return (
            f"{name} takes {gib(outcome.taken_bytes)} GiB: {gib(outcome.kv_bytes)} GiB of KV cache, as "
            f"given, and {gib(outcome.terms.fixed_bytes)} GiB beside it; its budget is {budget} GiB"
        )
    sequences = outcome.kv_cache.least_blocks
    if sequences > outcome.kv_cache.blocks_per_request:
        need = f"to keep a state for each of {grouped(sequences)} sequences (max_num_seqs)"
    else:
        need = f"for one request of {grouped(outcome.max_model_len)} tokens"
    return (
        f"{name} needs {gib(outcome.kv_cache.least_bytes)} GiB of KV cache {need}, "
        f"{gib(outcome.kv_bytes)} GiB are left of its {budget} GiB"
    )


def _hint(ways: tuple[str, ...]) -> str:
    return ", or ".join(ways) if ways else "choose a smaller or a quantised model, or a larger GPU"
