"""What each fraction buys: the terms of an engine's memory, its KV cache, and what it would take to fit.

    KV cache = request - weights - one step and what stays - CUDA graphs   (`determine_available_memory`,
                                                                        vllm/v1/worker/gpu_worker.py)

On a host the CPU worker takes the request less what its process already uses (`cpu_worker.py`), libraries
included. A fixed `kv_cache_memory_bytes` is the KV cache: vLLM allocates it whatever the fraction is, so here
it must fit into the fraction beside everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memoria.config.model import EngineConfig
from memoria.errors import Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import Budget, Holding
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.footprint.footprint import Footprint, measure
from memoria.plan.footprint.kv_cache import Capacity, KvCache
from memoria.plan.footprint.settings import Machine, version_of
from memoria.plan.footprint.weights import Weights
from memoria.text import gib

# A vLLM process on a CPU before its model: Python, torch and their libraries. An estimate.
HOST_RUNTIME_BYTES = 800 * 2**20


@dataclass(frozen=True, slots=True)
class Learned:
    """What an engine reported after a start with exactly these settings; None where it reported nothing."""

    weights_bytes: int | None = None
    graph_bytes: int | None = None
    kv_bytes: int | None = None
    requested_bytes: int | None = None  # the budget under which `kv_bytes` was measured
    is_cold: bool | None = None  # whether the compile cache was empty then


@dataclass(frozen=True, slots=True)
class Terms:
    """Bytes inside the budget. `step_bytes` is the peak of one step, with what stays after it; on a host, the
    libraries of the process. `cold_bytes` of it are the first start's alone, with an empty compile cache;
    where a warm start was measured, they would come on top.
    `graph_bytes` is what vLLM takes off the KV cache for graphs. `bar_bytes` is the error of the estimates.
    `learned`: measured at an earlier start, not estimated by the planner."""

    weights_bytes: int
    step_bytes: int
    graph_bytes: int
    learned: bool = False
    cold_bytes: int = 0
    bar_bytes: int = 0

    @property
    def fixed_bytes(self) -> int:
        return self.weights_bytes + self.step_bytes + self.graph_bytes

    @property
    def safe_bytes(self) -> int:
        """With all of the error on the wrong side."""
        return self.fixed_bytes + self.bar_bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """One engine's plan. `kv_bytes` is below 0 where not even the weights fit; `kv_cache` is the layout for
    the length that vLLM would choose (`max_model_len: auto` fits it to the memory)."""

    engine: EngineConfig
    budget: Budget
    footprint: Footprint
    files: ModelFiles
    terms: Terms
    kv_bytes: int
    kv_cache: KvCache

    @property
    def capacity(self) -> Capacity:
        return self.kv_cache.capacity(self.kv_bytes)

    @property
    def max_model_len(self) -> int:
        return self.kv_cache.demand.max_model_len

    @property
    def needed_bytes(self) -> int:
        """The smallest budget with which vLLM starts without a doubt, and that it does not exceed."""
        return self.terms.safe_bytes + max(self.kv_cache.least_bytes or 1, self.budget.kv_cache_bytes or 0)

    @property
    def taken_bytes(self) -> int:
        """Device memory besides its context: its budget, or more where a fixed KV cache exceeds it."""
        return max(self.budget.requested_bytes, self.terms.fixed_bytes + self.kv_bytes)

    @property
    def starts(self) -> bool:
        """Whether vLLM finds its KV cache large enough."""
        return self.kv_bytes > 0 and self.kv_bytes >= self.kv_cache.least_bytes

    @property
    def fits(self) -> bool:
        return self.starts and self.taken_bytes <= self.budget.requested_bytes

    @property
    def is_measured(self) -> bool:
        """Whether vLLM measures its step for the size of the KV cache, which is else fixed."""
        return self.budget.kv_cache_bytes is None

    @property
    def is_doubtful(self) -> bool:
        """Whether it fits, or does not, by less than the error of the estimates."""
        spare = self.kv_bytes - max(1, self.kv_cache.least_bytes)
        return self.is_measured and abs(spare) < self.terms.bar_bytes

    @property
    def holding(self) -> Holding:
        return Holding(
            weights_bytes=self.terms.weights_bytes,
            step_bytes=self.terms.step_bytes,
            graph_bytes=self.terms.graph_bytes,
            kv_bytes=self.kv_bytes if self.kv_cache.groups else min(0, self.kv_bytes),
            context_bytes=self.budget.context_bytes,
            bar_bytes=self.terms.bar_bytes if self.is_measured else 0,
            fits=self.fits,
            is_doubtful=self.is_doubtful,
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the figures leave out, and how sure they are; each a sentence without a full stop."""
        found = self.footprint.caveats
        if self.fits and self.is_doubtful:
            found += (
                f"doubtful: it fits by less than the error of the estimate, {gib(self.terms.bar_bytes)} GiB",
            )
        cold = gib(self.terms.cold_bytes)
        if self.terms.cold_bytes < _NOTABLE_COLD_BYTES:
            return found
        if self.terms.learned:
            return (
                *found,
                f"measured with a warm compile cache: a start with an empty one takes {cold} GiB more",
            )
        return (
            *found,
            f"{cold} GiB of the step are for the first start alone, with an empty compile cache",
        )


# Less is not worth a line.
_NOTABLE_COLD_BYTES = 2**28


def machine_of(device: Device, vllm: str | None = None) -> Machine:
    return Machine(device.usable_bytes, device.name, device.is_host, version_of(vllm))


def footprint_of(
    engine: EngineConfig,
    files: ModelFiles,
    device: Device,
    weights: Weights | None = None,
    *,
    vllm: str | None = None,
) -> Footprint:
    """`weights`, where already known, are not computed again; `vllm` is its version, where known. Raises
    `ValueError` for a model of a kind that the planner does not support."""
    return measure(
        files,
        engine.vllm_args,
        machine_of(device, vllm),
        pooling=engine.runner == "pooling",
        environ=engine.env,
        weights=weights,
    )


def make_outcome(
    engine: EngineConfig,
    budget: Budget,
    files: ModelFiles,
    device: Device,
    learned: Learned | None = None,
    *,
    vllm: str | None = None,
) -> Outcome:
    """Raises `ValueError` for a model of a kind that the planner does not support."""
    footprint = footprint_of(engine, files, device, vllm=vllm)
    if learned is not None and budget.kv_cache_bytes is not None:
        # With a fixed KV cache part of the budget stays unused, so it says nothing about a step.
        learned = replace(learned, kv_bytes=None)
    return _outcome(engine, budget, footprint, files, make_terms(footprint, device, learned))


def _outcome(
    engine: EngineConfig, budget: Budget, footprint: Footprint, files: ModelFiles, terms: Terms
) -> Outcome:
    kv_bytes = budget.kv_cache_bytes
    if kv_bytes is None:
        kv_bytes = budget.requested_bytes - terms.fixed_bytes
    return Outcome(engine, budget, footprint, files, terms, kv_bytes, fitted(footprint, kv_bytes))


def make_terms(footprint: Footprint, device: Device, learned: Learned | None = None) -> Terms:
    peaks = footprint.peaks
    if device.is_host:
        planned = Terms(footprint.weights.total_bytes, HOST_RUNTIME_BYTES, 0)
    else:
        step = peaks.step_bytes + peaks.cold_bytes + peaks.stays_bytes
        planned = Terms(
            footprint.weights.total_bytes,
            step,
            peaks.charged_bytes,
            cold_bytes=peaks.cold_bytes,
            bar_bytes=peaks.bar_bytes,
        )
    if learned is None:
        return planned
    weights = planned.weights_bytes if learned.weights_bytes is None else learned.weights_bytes
    graphs = planned.graph_bytes if learned.graph_bytes is None else learned.graph_bytes
    step = planned.step_bytes
    if learned.kv_bytes is not None and learned.requested_bytes is not None:
        # The rest was the step's: weights, graphs, step and KV cache always add up to the budget.
        step = max(0, learned.requested_bytes - learned.kv_bytes - weights - graphs)
        warm = learned.is_cold is False
        return Terms(weights, step, graphs, learned=True, cold_bytes=peaks.cold_bytes if warm else 0)
    return Terms(weights, step, graphs, learned=True, bar_bytes=planned.bar_bytes)


def changed(outcome: Outcome, device: Device, **args: Any) -> Outcome:
    """The outcome with other flags, none of which affects the weights. Learned figures for a step and for
    graphs are scaled as the planner's estimates of them change."""
    engine = replace(outcome.engine, vllm_args={**outcome.engine.vllm_args, **args})
    version = "{}.{}".format(*outcome.footprint.settings.vllm)
    footprint = footprint_of(engine, outcome.files, device, outcome.footprint.weights, vllm=version)
    terms, before = make_terms(footprint, device), make_terms(outcome.footprint, device)
    if outcome.terms.learned:
        terms = Terms(
            outcome.terms.weights_bytes,
            _in_proportion(outcome.terms.step_bytes, terms.step_bytes, before.step_bytes),
            _in_proportion(outcome.terms.graph_bytes, terms.graph_bytes, before.graph_bytes),
            learned=True,
            bar_bytes=outcome.terms.bar_bytes,
        )
    return _outcome(engine, outcome.budget, footprint, outcome.files, terms)


def _in_proportion(learned: int, planned: int, planned_before: int) -> int:
    return learned * planned // planned_before if planned_before else learned


def fitted(footprint: Footprint, kv_bytes: int) -> KvCache:
    cache = footprint.kv_cache
    if not footprint.settings.fits_length or not cache.groups:
        return cache
    length = max(1, cache.longest(kv_bytes))
    return replace(cache, demand=replace(cache.demand, max_model_len=length))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes by engine name; `unknown` has the reason for every engine whose model is not known."""

    known: Mapping[str, Outcome]
    unknown: Mapping[str, Problem]
