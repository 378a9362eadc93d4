"""Fractions to bytes and back, with vLLM's own rounding."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from memoria.config.model import EngineConfig
from memoria.gpu.device import Device
from memoria.plan.footprint.settings import human_int

# A process's CUDA context lies outside its fraction. An estimate: 0.41 GiB on an A100 to 0.61 on an H100, by
# GPU and driver; 2.0 to 2.5 where the CPU is a Grace.
CONTEXT_BYTES = 2**29
GRACE_CONTEXT_BYTES = 9 * 2**28
# Added to the estimate of one context, so that the largest of that range still fits.
MARGIN_BYTES = 2**28
# CUDA graphs and libraries that stay while an engine sleeps. An estimate: 0.8 to 1.5 GiB with the context.
ASLEEP_BYTES = 2**30
HUNDREDTH = Decimal("0.01")
# vLLM rounds up to a whole byte, in floats: each engine may take this much more than its exact share.
ROUNDING_BYTES = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine may claim. `context_bytes` and `margin_bytes` are 0 on a host.

    `kv_cache_bytes` is set where the configuration fixes the KV cache: vLLM then allocates that much,
    regardless of the fraction (`kv_cache_memory_bytes` in vllm/config/cache.py). `asleep_bytes`: what it
    keeps while it sleeps, its context included.
    """

    engine: str
    fraction: Decimal
    requested_bytes: int
    context_bytes: int
    margin_bytes: int
    kv_cache_bytes: int | None = None
    on_demand: bool = False
    asleep_bytes: int = 0

    @property
    def start_bytes(self) -> int:
        """What must be free when the engine starts."""
        return self.requested_bytes + self.context_bytes + self.margin_bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """What a budget is planned to hold, in bytes: the terms of `memoria.plan.outcome.Terms`, and the KV cache
    (below 0 where they leave it nothing). `context_bytes` lie outside the budget."""

    weights_bytes: int
    step_bytes: int
    graph_bytes: int
    kv_bytes: int
    context_bytes: int
    bar_bytes: int
    fits: bool
    is_doubtful: bool


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device and its engines, in the file's order. `available_bytes`: free memory plus what memoria's own
    engines already use. `limit`: of the fractions of awake engines together. `awake_sets`: the largest sets
    of engines on demand that may be awake together.

    Sums are of the engines that are `awake` when the most memory is used."""

    device: Device
    budgets: tuple[Budget, ...]
    available_bytes: int
    limit: Decimal = Decimal(1)
    awake_sets: tuple[tuple[str, ...], ...] = ()

    @property
    def residents(self) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if not budget.on_demand)

    @property
    def on_demand(self) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if budget.on_demand)

    @property
    def awake(self) -> tuple[Budget, ...]:
        """All residents, and of the engines on demand the set with the most memory."""
        largest = max((self._named(names) for names in self.awake_sets), key=_requested, default=())
        if not self.awake_sets and self.on_demand:  # not even one fits
            largest = (min(self.on_demand, key=lambda budget: budget.requested_bytes),)
        return tuple(budget for budget in self.budgets if not budget.on_demand or budget in largest)

    def may_be_awake(self, engines: Set[str]) -> bool:
        """Whether these engines on demand may be awake together, beside the residents."""
        awake = (*self.residents, *self._named(engines))
        if sum((budget.fraction for budget in awake), Decimal(0)) > self.limit:
            return False
        asleep = sum(budget.asleep_bytes for budget in self.on_demand if budget.engine not in engines)
        return _requested(awake) + _overhead(awake) + asleep <= self.device.usable_bytes

    def with_asleep(self, measured: Mapping[str, int]) -> DevicePlan:
        """With what engines were seen to keep asleep."""
        if not measured:
            return self
        budgets = (replace(b, asleep_bytes=measured.get(b.engine, b.asleep_bytes)) for b in self.budgets)
        return replace(self, budgets=tuple(budgets))

    def _named(self, names: Collection[str]) -> tuple[Budget, ...]:
        return tuple(budget for budget in self.budgets if budget.engine in names)

    @property
    def fraction(self) -> Decimal:
        return sum((budget.fraction for budget in self.awake), Decimal(0))

    @property
    def requested_bytes(self) -> int:
        return _requested(self.awake)

    @property
    def context_bytes(self) -> int:
        return sum(budget.context_bytes for budget in self.awake)

    @property
    def overhead_bytes(self) -> int:
        """What must stay outside the fractions: every context, and the margin of the last engine to start."""
        return _overhead(self.awake)

    @property
    def asleep_bytes(self) -> int:
        """What the engines that sleep keep while the others are awake."""
        return sum(budget.asleep_bytes for budget in self.budgets if budget not in self.awake)

    @property
    def needed_bytes(self) -> int:
        return self.requested_bytes + self.overhead_bytes + self.asleep_bytes

    @property
    def unplanned_bytes(self) -> int:
        """Below 0 where the fractions add up to more than 1."""
        return self.device.usable_bytes - self.requested_bytes


def _requested(budgets: Collection[Budget]) -> int:
    return sum(budget.requested_bytes for budget in budgets)


def _overhead(budgets: Collection[Budget]) -> int:
    contexts = sum(budget.context_bytes for budget in budgets)
    return contexts + max((budget.margin_bytes for budget in budgets), default=0)


def spoken_name(device: Device) -> str:
    """A device as the subject of a sentence."""
    return "this host" if device.is_host else f"GPU {device.number}"


def requested_bytes(total: int, fraction: Decimal) -> int:
    """The memory that vLLM requests, with `total` as CUDA reports it (`Device.usable_bytes`).

    The same float arithmetic as vLLM's, so that both arrive at the same byte: `request_memory` in
    vllm/v1/worker/utils.py for GPUs, `CPUWorker.__init__` in vllm/v1/worker/cpu_worker.py for hosts.
    """
    return math.ceil(total * float(fraction))


def exact_fraction(total: int, size: int) -> Decimal:
    """The fraction for which vLLM requests `size` bytes of `total`: the inverse of `requested_bytes`. The
    decimal is the float's shortest text, so that it parses back to the same float. `size` is at most `total`.
    """
    fraction = size / total
    while math.ceil(total * fraction) > size:
        fraction = math.nextafter(fraction, 0.0)
    return Decimal(repr(fraction))


def largest_fraction(plan: DevicePlan, available_bytes: int) -> Decimal:
    """The largest sum of a device's fractions that fits in `available_bytes`, rounded down to hundredths."""
    rounding = ROUNDING_BYTES * len(plan.awake)
    share = (
        Decimal(available_bytes - plan.overhead_bytes - plan.asleep_bytes - rounding)
        / plan.device.usable_bytes
    )
    return share.quantize(HUNDREDTH, rounding=ROUND_FLOOR)


def smallest_fraction(needed: int, device: Device) -> Decimal | None:
    """The smallest hundredth of the device that is at least `needed` bytes; None where that exceeds 1."""
    fraction = (Decimal(needed) / device.usable_bytes).quantize(HUNDREDTH, rounding=ROUND_CEILING)
    if requested_bytes(device.usable_bytes, fraction) < needed:
        fraction += HUNDREDTH
    return fraction if fraction <= 1 else None


def context_bytes(device: Device) -> int:
    if device.is_host:
        return 0
    return GRACE_CONTEXT_BYTES if any(name in device.name for name in ("GH200", "GB200")) else CONTEXT_BYTES


def make_budget(engine: EngineConfig, device: Device, asleep_bytes: int | None = None) -> Budget:
    """`asleep_bytes`: as measured at an earlier sleep."""
    estimate = context_bytes(device) + ASLEEP_BYTES
    return Budget(
        engine=engine.name,
        fraction=engine.gpu_memory_utilization,
        requested_bytes=requested_bytes(device.usable_bytes, engine.gpu_memory_utilization),
        context_bytes=context_bytes(device),
        margin_bytes=0 if device.is_host else MARGIN_BYTES,
        kv_cache_bytes=kv_cache_bytes(engine.vllm_args),
        on_demand=engine.on_demand,
        asleep_bytes=(asleep_bytes or estimate) if engine.sleep_level else 0,
    )


def kv_cache_bytes(vllm_args: Mapping[str, Any]) -> int | None:
    """`kv_cache_memory_bytes`; None where it is unset, or a value that vLLM itself refuses."""
    return human_int(vllm_args.get("kv_cache_memory_bytes"))
