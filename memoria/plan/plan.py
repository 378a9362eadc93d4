"""The plan: every engine's budget on every device, and every reason why they do not fit.

Over all engines of a device, these must hold:

    sum of fractions             <=  gpu_limit                  (exact decimals)
    sum of requests + contexts   <=  total as CUDA reports it   otherwise the configuration is wrong
    sum of requests + contexts   <=  free memory                otherwise other processes hold it

with one margin added to the contexts, because the last engine to start needs it (`check_start`).

Engines on demand need not all be awake at once: each must fit beside the residents, and the scheduler keeps
awake what fits (`DevicePlan.may_be_awake`).

On a host the same rules guard its memory, with contexts of 0: the fraction is the most that an engine may
claim, weights included. vLLM's CPU worker checks it only where `kv_cache_memory_bytes` is unset
(vllm/v1/worker/cpu_worker.py); memoria always does, because an engine that outgrows its host is not refused
but killed by the kernel, and perhaps its neighbour in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from types import MappingProxyType

from memoria.config.model import Config, EngineConfig
from memoria.errors import ConfigError, MemoryHeldError, Problem
from memoria.gpu.device import Device
from memoria.plan.awake_sets import largest_sets
from memoria.plan.budgets import Budget, DevicePlan, Holding, largest_fraction, make_budget, spoken_name
from memoria.plan.free_memory import foreign, memory_problem
from memoria.text import aligned, fraction_text, gib


@dataclass(frozen=True, slots=True)
class Plan:
    """`config_problems` stay whatever runs on the devices; `memory_problems` go once others free memory.
    `holdings` are of the engines whose models are known, by name."""

    devices: tuple[DevicePlan, ...]
    config_problems: tuple[Problem, ...]
    memory_problems: tuple[Problem, ...]
    holdings: Mapping[str, Holding] = field(default_factory=dict)

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


def make_plan(
    config: Config,
    devices: Mapping[int | str, Device],
    own_pids: Collection[int] = (),
    asleep: Mapping[str, int] = MappingProxyType({}),
) -> Plan:
    """The plan for all engines of `config`.

    `devices` has a snapshot for every engine's `gpu`, as written there; two spellings of one GPU are one
    device. `own_pids` are the processes of memoria's running engines: the memory they use counts as free.
    `asleep`: bytes that engines were seen to keep asleep.
    """
    snapshots: dict[str, Device] = {}
    engines_on: dict[str, list[EngineConfig]] = {}
    for engine in config.engines:
        device = devices[engine.gpu]
        snapshots.setdefault(device.uuid, device)
        engines_on.setdefault(device.uuid, []).append(engine)
    plans = tuple(
        _device_plan(config, snapshots[uuid], engines, own_pids, asleep)
        for uuid, engines in engines_on.items()
    )

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
    return tuple(
        problem
        for engines in engines_on.values()
        for problem in _for_each_awake(
            engines, lambda awake: _over_limit(config, awake, {}, room=config.gpu_limit)
        )
    )


def _for_each_awake(
    engines: Sequence[EngineConfig], problem_of: Callable[[Sequence[EngineConfig]], Problem | None]
) -> Iterator[Problem]:
    """Problems of the residents; where they fit, of each engine on demand beside them."""
    residents = [engine for engine in engines if not engine.on_demand]
    if problem := problem_of(residents):
        yield problem
        return
    for engine in engines:
        if engine.on_demand and (problem := problem_of([*residents, engine])):
            what = f"{engine.name} could never be awake: {problem.what}"
            largest = max(residents, key=lambda other: other.gpu_memory_utilization, default=None)
            way = f", or set `on_demand: true` for {largest.name} too" if largest else ""
            yield Problem(what, problem.where, f"{problem.hint}{way}")


def _device_plan(
    config: Config,
    device: Device,
    engines: list[EngineConfig],
    own_pids: Collection[int],
    asleep: Mapping[str, int],
) -> DevicePlan:
    own = sum(process.used_bytes or 0 for process in device.processes if process.pid in own_pids)
    plan = DevicePlan(
        device=device,
        budgets=tuple(make_budget(engine, device, asleep.get(engine.name)) for engine in engines),
        available_bytes=min(device.usable_bytes, device.free_bytes + own),
        limit=config.gpu_limit,
    )
    names = [budget.engine for budget in plan.on_demand]
    return replace(plan, awake_sets=largest_sets(names, plan.may_be_awake))


# ---------------------------------------------------------------------- problems of the fractions themselves


def _fraction_problems(config: Config, plan: DevicePlan) -> tuple[Problem, ...]:
    """Fractions over the limit or over the device, and KV caches over their budgets."""
    requested = {budget.engine: budget.requested_bytes for budget in plan.budgets}

    def problem_of(engines: Sequence[EngineConfig]) -> Problem | None:
        if not engines:
            return None
        names = {engine.name for engine in engines}
        awake = replace(
            plan,
            budgets=tuple(replace(b, on_demand=b.engine not in names) for b in plan.budgets),
            awake_sets=((),),  # all others are away
        )
        room = min(config.gpu_limit, largest_fraction(awake, plan.device.usable_bytes))
        return _over_limit(config, engines, requested, room=room) or _over_device(
            config, engines, requested, awake, room
        )

    engines = [config.engine(budget.engine) for budget in plan.budgets]
    over_budget = (_over_budget(config, budget) for budget in plan.budgets)
    return (*_for_each_awake(engines, problem_of), *(problem for problem in over_budget if problem))


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
    hint = _lower(engines, plan.fraction - room, room)
    if plan.asleep_bytes:
        contexts += f", others keep {gib(plan.asleep_bytes)} GiB asleep"
        largest = max(plan.on_demand, key=lambda budget: budget.asleep_bytes)
        hint += f", or write `sleep_level: none` for {largest.engine}: {gib(largest.asleep_bytes)} GiB less"
    return Problem(
        f"the engines need {gib(plan.requested_bytes)} GiB{contexts}, "
        f"{spoken_name(plan.device)} has {gib(plan.device.usable_bytes)} GiB in all",
        _where(config, engines, requested),
        hint,
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
