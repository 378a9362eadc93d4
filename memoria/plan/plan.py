"""The plan: every engine's budget on every device, and every reason why they do not fit.

Over all engines of a device, these must hold:

    sum of fractions             <=  gpu_limit                  (exact decimals)
    sum of requests + contexts   <=  total as CUDA reports it   otherwise the configuration is wrong
    sum of requests + contexts   <=  free memory                otherwise other processes hold it

with one margin added to the contexts, because the last engine to start needs it (`check_start`).

On a host the same rules guard its memory, with contexts of 0: the fraction is the most that an engine may
claim, weights included. vLLM's CPU worker checks it only where `kv_cache_memory_bytes` is unset
(vllm/v1/worker/cpu_worker.py); memoria always does, because an engine that outgrows its host is not refused
but killed by the kernel, and perhaps its neighbour in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from memoria.config.model import Config, EngineConfig
from memoria.errors import ConfigError, MemoryHeldError, Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget, DevicePlan, largest_fraction, make_budget, spoken_name
from memoria.plan.free_memory import foreign, memory_problem
from memoria.text import aligned, fraction_text, gib


@dataclass(frozen=True, slots=True)
class Plan:
    """`config_problems` stay whatever runs on the devices; `memory_problems` go once others free memory."""

    devices: tuple[DevicePlan, ...]
    config_problems: tuple[Problem, ...]
    memory_problems: tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.config_problems + self.memory_problems

    def budget(self, engine: str) -> Budget:
        return next(b for plan in self.devices for b in plan.budgets if b.engine == engine)

    def device(self, engine: str) -> Device:
        """The device of an engine, as it was when the plan was made."""
        return next(plan.device for plan in self.devices if any(b.engine == engine for b in plan.budgets))

    def raise_for_problems(self) -> None:
        """Raises `ConfigError` where the configuration must change, else `MemoryHeldError` where other
        processes hold the memory; either carries all problems."""
        if self.config_problems:
            raise ConfigError(self.problems)
        if self.memory_problems:
            raise MemoryHeldError(self.problems)


def make_plan(config: Config, devices: Mapping[int | str, Device], own_pids: Collection[int] = ()) -> Plan:
    """The plan for all engines of `config`.

    `devices` has a snapshot for every engine's `gpu`, as written there; two spellings of one GPU are one
    device. `own_pids` are the processes of memoria's running engines: the memory they use counts as free.
    """
    snapshots: dict[str, Device] = {}
    engines_on: dict[str, list[EngineConfig]] = {}
    for engine in config.engines:
        device = devices[engine.gpu]
        snapshots.setdefault(device.uuid, device)
        engines_on.setdefault(device.uuid, []).append(engine)
    plans = tuple(_device_plan(snapshots[uuid], engines, own_pids) for uuid, engines in engines_on.items())

    config_problems: list[Problem] = []
    memory_problems: list[Problem] = []
    for plan in plans:
        wrong = _fraction_problems(config, plan)
        config_problems += wrong
        short = memory_problem(plan, own_pids)
        # Fractions too large for the device are also too large for its free memory: not a second problem.
        if short and not (wrong and not foreign(plan.device, own_pids)):
            memory_problems.append(short)
    return Plan(plans, tuple(config_problems), tuple(memory_problems))


def limit_problems(config: Config) -> tuple[Problem, ...]:
    """Fractions over `gpu_limit`, by `gpu` as written: what can be checked without reading a device."""
    engines_on: dict[int | str, list[EngineConfig]] = {}
    for engine in config.engines:
        engines_on.setdefault("host" if config.device == "cpu" else engine.gpu, []).append(engine)
    found = (_over_limit(config, engines, {}, room=config.gpu_limit) for engines in engines_on.values())
    return tuple(problem for problem in found if problem)


def _device_plan(device: Device, engines: list[EngineConfig], own_pids: Collection[int]) -> DevicePlan:
    own = sum(process.used_bytes or 0 for process in device.processes if process.pid in own_pids)
    return DevicePlan(
        device=device,
        budgets=tuple(make_budget(engine, device) for engine in engines),
        available_bytes=min(device.usable_bytes, device.free_bytes + own),
    )


# ---------------------------------------------------------------------- problems of the fractions themselves


def _fraction_problems(config: Config, plan: DevicePlan) -> tuple[Problem, ...]:
    """Fractions over the limit or over the device, and KV caches over their budgets."""
    engines = [config.engine(budget.engine) for budget in plan.budgets]
    requested = {budget.engine: budget.requested_bytes for budget in plan.budgets}
    room = min(config.gpu_limit, largest_fraction(plan, plan.device.usable_bytes))
    found = [
        _over_limit(config, engines, requested, room=room)
        or _over_device(config, engines, requested, plan, room),
        *(_over_budget(config, budget) for budget in plan.budgets),
    ]
    return tuple(problem for problem in found if problem)


def _over_limit(
    config: Config, engines: Sequence[EngineConfig], requested: Mapping[str, int], *, room: Decimal
) -> Problem | None:
    """Fractions of one device against `gpu_limit`, in exact decimals (0.40 + 0.55 is 0.95; as floats it is
    more). `requested` gives the bytes where the device is known; `room` is the largest sum that would fit."""
    total = sum((engine.gpu_memory_utilization for engine in engines), Decimal(0))
    if total <= config.gpu_limit:
        return None
    sum_, limit = fraction_text(total, ROUND_CEILING), fraction_text(config.gpu_limit)
    return Problem(
        f"fractions add up to {sum_}, the limit is {limit}",
        _where(config, engines, requested),
        _lower(engines, total - room, room),
    )


def _over_device(
    config: Config,
    engines: Sequence[EngineConfig],
    requested: Mapping[str, int],
    plan: DevicePlan,
    room: Decimal,
) -> Problem | None:
    if plan.needed_bytes <= plan.device.usable_bytes:
        return None
    contexts = f" and {gib(plan.overhead_bytes)} GiB for CUDA contexts" if plan.overhead_bytes else ""
    return Problem(
        f"the engines need {gib(plan.requested_bytes)} GiB{contexts}, "
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
        f"but its whole budget is {gib(budget.requested_bytes)} GiB",
        aligned([row]),
        "vLLM allocates this KV cache whatever the fraction is: lower it, or raise gpu_memory_utilization "
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
