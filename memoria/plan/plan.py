"""The plan: every engine's budget on every device, and every reason why they do not fit.

Over all engines of a device, what must hold is

    sum of fractions             <=  gpu_limit                      (exact decimals)
    sum of requests + contexts   <=  what CUDA calls the total      else the configuration is wrong
    sum of requests + contexts   <=  what is free                   else others hold the memory

with one margin beside the contexts, because the last engine to start needs it (`check_start`).

On a host the same rules guard its memory, with contexts of 0: the fraction is the most that an engine may
claim, weights included. vLLM's CPU worker checks it only where `kv_cache_memory_bytes` is not given
(vllm/v1/worker/cpu_worker.py); here it always counts, because an engine that outgrows its host is not refused
but killed by the kernel, and perhaps its neighbour in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from memoria.config.model import Config, EngineConfig
from memoria.errors import ConfigError, MemoryHeldError, Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget, DevicePlan, make_budget
from memoria.plan.fractions import fraction_problems, over_limit
from memoria.plan.free_memory import foreign, held_problem


@dataclass(frozen=True, slots=True)
class Plan:
    """`config_problems` stay whatever runs on the devices; `held_problems` pass when others free memory."""

    devices: tuple[DevicePlan, ...]
    config_problems: tuple[Problem, ...]
    held_problems: tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.config_problems + self.held_problems

    def budget(self, engine: str) -> Budget:
        return next(b for plan in self.devices for b in plan.budgets if b.engine == engine)

    def device(self, engine: str) -> Device:
        """The device of an engine, as it was when the plan was made."""
        return next(plan.device for plan in self.devices if any(b.engine == engine for b in plan.budgets))

    def raise_for_problems(self) -> None:
        """Raises `ConfigError` where the configuration must change, else `MemoryHeldError` where others hold
        the memory; either carries all problems."""
        if self.config_problems:
            raise ConfigError(self.problems)
        if self.held_problems:
            raise MemoryHeldError(self.problems)


def make_plan(config: Config, devices: Mapping[int | str, Device], own_pids: Collection[int] = ()) -> Plan:
    """Plans all engines of `config`.

    `devices` holds a snapshot for every engine's `gpu`, as written there; two spellings of one GPU are one
    device. `own_pids` are the processes of memoria's engines that run already: what they hold counts as free.
    """
    snapshots: dict[str, Device] = {}
    engines_on: dict[str, list[EngineConfig]] = {}
    for engine in config.engines:
        device = devices[engine.gpu]
        snapshots.setdefault(device.uuid, device)
        engines_on.setdefault(device.uuid, []).append(engine)
    plans = tuple(_device_plan(snapshots[uuid], engines, own_pids) for uuid, engines in engines_on.items())

    config_problems: list[Problem] = []
    held_problems: list[Problem] = []
    for plan in plans:
        wrong = fraction_problems(config, plan)
        config_problems += wrong
        held = held_problem(plan, own_pids)
        # Fractions too large for the device are too large for what is free of it: no second problem in that.
        if held and not (wrong and not foreign(plan.device, own_pids)):
            held_problems.append(held)
    return Plan(plans, tuple(config_problems), tuple(held_problems))


def limit_problems(config: Config) -> tuple[Problem, ...]:
    """What can be said without reading a device: fractions over `gpu_limit`, by `gpu` as written."""
    engines_on: dict[int | str, list[EngineConfig]] = {}
    for engine in config.engines:
        engines_on.setdefault("host" if config.device == "cpu" else engine.gpu, []).append(engine)
    found = (
        over_limit(config, engines, requested={}, room=config.gpu_limit) for engines in engines_on.values()
    )
    return tuple(problem for problem in found if problem)


def _device_plan(device: Device, engines: list[EngineConfig], own_pids: Collection[int]) -> DevicePlan:
    own = sum(process.used_bytes or 0 for process in device.processes if process.pid in own_pids)
    return DevicePlan(
        device=device,
        budgets=tuple(make_budget(engine, device) for engine in engines),
        available_bytes=min(device.usable_bytes, device.free_bytes + own),
    )
