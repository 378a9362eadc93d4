"""Fractions to bytes, as vLLM turns them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from memoria.config.model import EngineConfig
from memoria.gpu.device import Device
from memoria.plan.human_int import human_int

# A process's CUDA context lies outside its fraction. An estimate: 0.3 to 0.7 GiB by GPU and driver.
CONTEXT_BYTES = 2**29
# Above one context's estimate, so that the largest of that range still fits.
MARGIN_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Budget:
    """What one engine may claim. `context_bytes` and `margin_bytes` are 0 on a host.

    `kv_cache_bytes` is set where the configuration fixes the KV cache: vLLM then takes that much, whatever
    the fraction (`kv_cache_memory_bytes` in vllm/config/cache.py).
    """

    engine: str
    fraction: Decimal
    requested_bytes: int
    context_bytes: int
    margin_bytes: int
    kv_cache_bytes: int | None = None

    @property
    def start_bytes(self) -> int:
        """What must be free when the engine starts."""
        return self.requested_bytes + self.context_bytes + self.margin_bytes


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device and the engines on it, in the file's order. `available_bytes` is what they can have: what is
    free, and what memoria's own engines hold already."""

    device: Device
    budgets: tuple[Budget, ...]
    available_bytes: int

    @property
    def fraction(self) -> Decimal:
        return sum((budget.fraction for budget in self.budgets), Decimal(0))

    @property
    def requested_bytes(self) -> int:
        return sum(budget.requested_bytes for budget in self.budgets)

    @property
    def context_bytes(self) -> int:
        return sum(budget.context_bytes for budget in self.budgets)

    @property
    def overhead_bytes(self) -> int:
        """What must stay outside the fractions: every context, and the margin of the last engine to start."""
        return self.context_bytes + max(budget.margin_bytes for budget in self.budgets)

    @property
    def needed_bytes(self) -> int:
        return self.requested_bytes + self.overhead_bytes

    @property
    def unplanned_bytes(self) -> int:
        """Below 0 where the fractions add up to more than 1."""
        return self.device.usable_bytes - self.requested_bytes


def spoken_name(device: Device) -> str:
    """A device as the subject of a sentence."""
    return "this host" if device.is_host else f"GPU {device.index}"


def requested_bytes(total: int, fraction: Decimal) -> int:
    """The memory vLLM asks for, with `total` as CUDA gives it (`Device.usable_bytes`).

    The same float arithmetic as vLLM's, so that both come to the same byte: `request_memory` in
    vllm/v1/worker/utils.py for GPUs, `CPUWorker.__init__` in vllm/v1/worker/cpu_worker.py for hosts.
    """
    return math.ceil(total * float(fraction))


def make_budget(engine: EngineConfig, device: Device) -> Budget:
    return Budget(
        engine=engine.name,
        fraction=engine.gpu_memory_utilization,
        requested_bytes=requested_bytes(device.usable_bytes, engine.gpu_memory_utilization),
        context_bytes=0 if device.is_host else CONTEXT_BYTES,
        margin_bytes=0 if device.is_host else MARGIN_BYTES,
        kv_cache_bytes=kv_cache_bytes(engine.vllm_args),
    )


def kv_cache_bytes(vllm_args: Mapping[str, Any]) -> int | None:
    """`kv_cache_memory_bytes`; None where it is not set, or is something that vLLM itself refuses."""
    return human_int(vllm_args.get("kv_cache_memory_bytes"))
