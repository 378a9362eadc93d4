"""Fractions chosen from sizes and wishes, for engines with `gpu_memory` or `gpu_memory_utilization: auto`.

A size becomes the one fraction that vLLM's own rounding turns back into that size. Every engine with a wish
gets the smallest hundredth that grants it; engines with a `weight`, or without a wish, then share what is
left. All of it is arithmetic over the file, the device and the models: the same input gives the same choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal

from memoria.config.model import Config, EngineConfig, Want
from memoria.errors import Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import (
    HUNDREDTH,
    MARGIN_BYTES,
    ROUNDING_BYTES,
    context_bytes,
    exact_fraction,
    kv_cache_bytes,
    smallest_fraction,
)
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.footprint.kv_cache import Demand, KvCache
from memoria.plan.outcome import Outcome, footprint_of, make_terms
from memoria.text import aligned, fraction_text, gib, grouped

# The minimum of an engine that only shares.
LEAST = HUNDREDTH


@dataclass(frozen=True, slots=True)
class Choice:
    """A fraction that was chosen, not written, and the reason."""

    engine: str
    fraction: Decimal
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """`config` has a fraction for every engine; with `problems`, some are still 0."""

    config: Config
    choices: tuple[Choice, ...]
    problems: tuple[Problem, ...]


def settle(
    config: Config,
    devices: Mapping[int | str, Device],
    files: Mapping[str, ModelFiles],
    unknown: Mapping[str, Problem] | None = None,
    *,
    vllm: str | None = None,
) -> Settled:
    """The configuration with every fraction chosen. Figures learned at earlier starts are ignored: they would
    change the choice, and so what is learned.

    `devices` as for `make_plan`; `files` has the models of the engines with wishes, by engine name, `unknown`
    the reason why one is missing; `vllm` is its version, where known."""
    choices: list[Choice] = []
    problems: list[Problem] = []
    on: dict[str, list[EngineConfig]] = {}
    for engine in config.engines:
        on.setdefault(devices[engine.gpu].uuid, []).append(engine)
    for engines in on.values():
        chosen, wrong = _choose(config, devices[engines[0].gpu], engines, files, unknown or {}, vllm=vllm)
        choices += chosen
        problems += wrong
    by_name = {choice.engine: choice.fraction for choice in choices}
    settled = tuple(
        replace(engine, gpu_memory_utilization=by_name.get(engine.name, engine.gpu_memory_utilization))
        for engine in config.engines
    )
    return Settled(replace(config, engines=settled), tuple(choices), tuple(problems))


def wanted_bytes(engine: EngineConfig, files: ModelFiles, device: Device, vllm: str | None) -> int:
    """The smallest budget that grants the engine's wish, and with which vLLM starts. Raises `ValueError` for
    a model of a kind that the planner does not support."""
    footprint = footprint_of(engine, files, device, vllm=vllm)
    fixed = make_terms(footprint, device).safe_bytes
    given = kv_cache_bytes(engine.vllm_args)
    return fixed + (
        given if given is not None else wanted_cache_bytes(footprint.kv_cache, engine.want or Want())
    )


def wanted_cache_bytes(cache: KvCache, want: Want) -> int:
    """KV cache bytes for requests of `context` tokens, which may be fewer than the engine accepts."""
    shorter = _at(cache, want.context)
    wished = shorter.bytes_for(concurrency=want.concurrency or 1.0, tokens=want.tokens or 0)
    return max(1, cache.least_bytes, wished)


def granting_bytes(outcome: Outcome) -> int:
    """The smallest budget with which an engine that fits still starts, and still has its wish granted."""
    if outcome.engine.want is None:
        return outcome.needed_bytes
    wished = outcome.terms.safe_bytes + wanted_cache_bytes(outcome.kv_cache, outcome.engine.want)
    return max(outcome.needed_bytes, wished)


def wish_problem(config: Config, outcome: Outcome) -> Problem | None:
    """A written fraction that does not grant the engine's own wish."""
    want = outcome.engine.want
    if want is None or not outcome.fits:
        return None
    needed = wanted_cache_bytes(outcome.kv_cache, want)
    if needed <= outcome.kv_bytes:
        return None
    got = _at(outcome.kv_cache, want.context).capacity(outcome.kv_bytes)
    name = outcome.engine.name
    return Problem(
        f"{name} wants {describe(want)}, its fraction grants {got.concurrency:.1f} requests "
        f"({grouped(got.tokens)} tokens)",
        _where(config, name, "want"),
        f"it takes {gib(needed - outcome.kv_bytes)} GiB more: "
        "set gpu_memory_utilization to auto, or wish for less",
    )


def describe(want: Want) -> str:
    parts = []
    if want.concurrency is not None:
        parts.append(f"{want.concurrency:g} request{'' if want.concurrency == 1 else 's'}")
    if want.context is not None:
        parts.append(f"{'of ' if parts else 'a context of '}{grouped(want.context)} tokens")
    if want.tokens is not None:
        parts.append(f"{'and ' if parts else ''}{grouped(want.tokens)} tokens in all")
    return " ".join(parts) or "a share"


def _at(cache: KvCache, context: int | None) -> KvCache:
    if context is None or not cache.groups:
        return cache
    length = min(context, cache.demand.max_model_len)
    return replace(cache, demand=Demand(length, cache.demand.in_flight))


def _choose(
    config: Config,
    device: Device,
    engines: Sequence[EngineConfig],
    files: Mapping[str, ModelFiles],
    unknown: Mapping[str, Problem],
    *,
    vllm: str | None,
) -> tuple[tuple[Choice, ...], tuple[Problem, ...]]:
    """Of one device. With problems there are no choices."""
    choices: dict[str, Choice] = {}
    problems: list[Problem] = []
    for engine in engines:
        if engine.gpu_memory is not None:
            found = _sized(config, engine, engine.gpu_memory, device)
        elif engine.is_auto:
            found = _wished(config, engine, files, unknown, device, vllm=vllm)
        else:
            continue
        if isinstance(found, Problem):
            problems.append(found)
        else:
            choices[engine.name] = found
    if problems or not any(engine.is_auto for engine in engines):
        return (() if problems else tuple(choices.values())), tuple(problems)
    known = {engine.name: engine.gpu_memory_utilization for engine in engines}
    known |= {name: choice.fraction for name, choice in choices.items()}
    away = [known[engine.name] for engine in engines if engine.on_demand]
    taken = sum(known.values(), Decimal(0)) - sum(away, Decimal(0)) + max(away, default=Decimal(0))
    room = room_for(config, device, len(engines) - max(0, len(away) - 1))
    if taken > room:
        return (), (_too_much(device, list(choices.values()), taken, room),)
    wants = {engine.name: engine.want or Want(weight=Decimal(1)) for engine in engines if engine.is_auto}
    weights = {name: want.weight for name, want in wants.items() if want.weight}
    total = sum(weights.values(), Decimal(0))
    for name, weight in weights.items():
        # Rounded down: the rest stays unplanned.
        share = ((room - taken) * weight / total).quantize(HUNDREDTH, rounding=ROUND_FLOOR)
        choices[name] = replace(choices[name], fraction=choices[name].fraction + share)
    return tuple(choices[engine.name] for engine in engines if engine.name in choices), ()


def _sized(config: Config, engine: EngineConfig, size: int, device: Device) -> Choice | Problem:
    if size > device.usable_bytes:
        return Problem(
            f"{engine.name} asks for {gib(size)} GiB, "
            f"{device.label} has {gib(device.usable_bytes)} GiB in all",
            _where(config, engine.name, "gpu_memory"),
            "lower gpu_memory",
        )
    return Choice(engine.name, exact_fraction(device.usable_bytes, size), f"{gib(size)} GiB as written")


def _wished(
    config: Config,
    engine: EngineConfig,
    files: Mapping[str, ModelFiles],
    unknown: Mapping[str, Problem],
    device: Device,
    *,
    vllm: str | None,
) -> Choice | Problem:
    found = _needed(engine, files, unknown, device, vllm=vllm)
    if isinstance(found, Problem):
        key = "want" if engine.want else "gpu_memory_utilization"
        return replace(found, where=found.where or _where(config, engine.name, key))
    return Choice(engine.name, found, f"for {describe(engine.want)}" if engine.want else "a share")


def room_for(config: Config, device: Device, engines: int) -> Decimal:
    """The largest sum of the fractions of `engines`: the limit, or what contexts leave of the device."""
    margin = 0 if device.is_host else MARGIN_BYTES
    around = (ROUNDING_BYTES + context_bytes(device)) * engines + margin
    left = Decimal(device.usable_bytes - around) / device.usable_bytes
    return min(config.gpu_limit, left.quantize(HUNDREDTH, rounding=ROUND_FLOOR))


def _needed(
    engine: EngineConfig,
    files: Mapping[str, ModelFiles],
    unknown: Mapping[str, Problem],
    device: Device,
    *,
    vllm: str | None,
) -> Decimal | Problem:
    if engine.name not in files:
        reason = unknown.get(engine.name) or Problem(f"the files of {engine.model} were not found")
        return Problem(
            f"no fraction can be chosen for {engine.name}: {reason.what}",
            reason.where,
            f"{reason.hint}; or write a fraction" if reason.hint else "write a fraction",
        )
    try:
        needed = wanted_bytes(engine, files[engine.name], device, vllm)
    except ValueError as error:
        return Problem(f"no fraction can be chosen for {engine.name}: {error}", (), "write a fraction")
    fraction = smallest_fraction(needed, device)
    if fraction is None:
        return Problem(
            f"{engine.name} needs {gib(needed)} GiB for {describe(engine.want or Want())}, "
            f"{device.label} has {gib(device.usable_bytes)} GiB in all",
            (),
            "ask for less, or quantise the model or its KV cache (kv_cache_dtype: fp8)",
        )
    return max(LEAST, fraction)


def _too_much(device: Device, choices: Sequence[Choice], taken: Decimal, room: Decimal) -> Problem:
    rows = [(choice.engine, fraction_text(choice.fraction), choice.reason) for choice in choices]
    short = int((taken - room) * device.usable_bytes)
    return Problem(
        f"the wishes need {fraction_text(taken)} of {device.label}, there is room for {fraction_text(room)}",
        tuple(aligned(rows, right={1})),
        f"ask for {gib(short)} GiB less in all: fewer requests at once, or a shorter context",
    )


def _where(config: Config, name: str, key: str) -> tuple[str, ...]:
    mark = config.where("engines", name, key)
    return (f"{mark}  {name}.{key}" if mark else f"{name}.{key}",)
