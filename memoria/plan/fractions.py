"""What is wrong with the fractions themselves, whatever else runs on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from memoria.config.model import Config, EngineConfig
from memoria.errors import Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget, DevicePlan, requested_bytes, spoken_name
from memoria.text import aligned, fraction_text, gib

HUNDREDTH = Decimal("0.01")
# Rounding up to a whole byte, in floats, may cost each engine this much more than its exact share.
ROUNDING_BYTES = 2


def fraction_problems(config: Config, plan: DevicePlan) -> tuple[Problem, ...]:
    """All of them for one device: over the limit or over the device, and KV caches over their budgets."""
    engines = [config.engine(budget.engine) for budget in plan.budgets]
    requested = {budget.engine: budget.requested_bytes for budget in plan.budgets}
    room = min(config.gpu_limit, largest_fraction(plan, plan.device.usable_bytes))
    found = [over_limit(config, engines, requested=requested, room=room) or _over_device(config, plan, room)]
    found += [_over_budget(config, budget) for budget in plan.budgets]
    return tuple(problem for problem in found if problem)


def over_limit(
    config: Config, engines: Sequence[EngineConfig], *, requested: Mapping[str, int], room: Decimal
) -> Problem | None:
    """Fractions of one device against `gpu_limit`, in exact decimals (0.40 + 0.55 is 0.95; as floats it is
    more). `requested` gives the bytes where the device is known; `room` is what the fractions may add up to.
    """
    total = sum((engine.gpu_memory_utilization for engine in engines), Decimal(0))
    if total <= config.gpu_limit:
        return None
    sum_, limit = fraction_text(total, ROUND_CEILING), fraction_text(config.gpu_limit)
    return Problem(
        f"fractions add up to {sum_}, the limit is {limit}",
        _where(config, engines, requested),
        _lower(engines, total - room, room),
    )


def largest_fraction(plan: DevicePlan, available_bytes: int) -> Decimal:
    """What the fractions of a device may add up to for `available_bytes`, rounded down to hundredths."""
    rounding = ROUNDING_BYTES * len(plan.budgets)
    share = Decimal(available_bytes - plan.overhead_bytes - rounding) / plan.device.usable_bytes
    return share.quantize(HUNDREDTH, rounding=ROUND_FLOOR)


def smallest_fraction(needed: int, device: Device) -> Decimal | None:
    """The smallest hundredth of the device that is `needed` bytes; None where it has not so many."""
    fraction = (Decimal(needed) / device.usable_bytes).quantize(HUNDREDTH, rounding=ROUND_CEILING)
    if requested_bytes(device.usable_bytes, fraction) < needed:
        fraction += HUNDREDTH
    return fraction if fraction <= 1 else None


def _over_device(config: Config, plan: DevicePlan, room: Decimal) -> Problem | None:
    if plan.needed_bytes <= plan.device.usable_bytes:
        return None
    engines = [config.engine(budget.engine) for budget in plan.budgets]
    requested = {budget.engine: budget.requested_bytes for budget in plan.budgets}
    beside = f" and {gib(plan.overhead_bytes)} beside it for CUDA contexts" if plan.overhead_bytes else ""
    return Problem(
        f"the engines need {gib(plan.requested_bytes)} GiB{beside}, "
        f"{spoken_name(plan.device)} has {gib(plan.device.usable_bytes)} GiB in all",
        _where(config, engines, requested),
        _lower(engines, plan.fraction - room, room),
    )


def _over_budget(config: Config, budget: Budget) -> Problem | None:
    if budget.kv_cache_bytes is None or budget.kv_cache_bytes <= budget.requested_bytes:
        return None
    mark = config.where("engines", budget.engine, "kv_cache_memory_bytes")
    row = (*((str(mark),) if mark else ()), f"{budget.engine}.kv_cache_memory_bytes")
    return Problem(
        f"the KV cache of {budget.engine} is {gib(budget.kv_cache_bytes)} GiB, "
        f"its whole budget {gib(budget.requested_bytes)} GiB",
        aligned([row]),
        "vLLM takes this KV cache whatever the fraction is: lower it, or raise gpu_memory_utilization "
        "so that the weights fit beside it",
    )


def _where(config: Config, engines: Sequence[EngineConfig], requested: Mapping[str, int]) -> tuple[str, ...]:
    rows = []
    for engine in engines:
        mark = config.where("engines", engine.name, "gpu_memory_utilization")
        size = requested.get(engine.name)
        rows.append(
            (
                str(mark or config.path or ""),
                f"{engine.name}.gpu_memory_utilization",
                fraction_text(engine.gpu_memory_utilization),
                f"{gib(size)} GiB" if size is not None else "",
            )
        )
    return tuple(line.lstrip() for line in aligned(rows, right={3}))


def _lower(engines: Sequence[EngineConfig], excess: Decimal, room: Decimal) -> str:
    if room <= 0:
        return "the device is too small for these engines: run fewer on it"
    largest = max(reversed(engines), key=lambda engine: engine.gpu_memory_utilization)
    lowered = largest.gpu_memory_utilization - excess
    if lowered < largest.gpu_memory_utilization / 2:
        return f"lower the fractions by {fraction_text(excess, ROUND_CEILING)} in total"
    return f"lower {largest.name} to {fraction_text(lowered, ROUND_FLOOR)}"
