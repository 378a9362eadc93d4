"""What an engine reported about its memory at a start, and the settings for which that is valid."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from memoria.config.model import EngineConfig
from memoria.gpu.device import Device
from memoria.plan.budgets import kv_cache_bytes
from memoria.plan.footprint.kv_cache import KvCache
from memoria.plan.outcome import Learned, Outcome

# An error is notable from this share of the planned term on, and from this many bytes: estimates may be off
# by less, those of graphs by much more.
_NOTABLE = {"kv_tokens": 0.05, "weights_bytes": 0.05, "graph_bytes": 0.5}
_NOTABLE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Comparison:
    """One term, as planned and as vLLM reported it: `kv_tokens`, `weights_bytes` or `graph_bytes`. `bar` is
    the plan's own error."""

    term: str
    planned: int
    said: int
    bar: int = 0

    @property
    def error(self) -> float | None:
        """Relative to the plan: 0.02 is 2 % more than planned; None where 0 was planned."""
        return self.said / self.planned - 1 if self.planned else None

    @property
    def is_notable(self) -> bool:
        if abs(self.said - self.planned) <= self.bar:
            return False
        in_bytes = self.term.endswith("_bytes")
        if in_bytes and abs(self.said - self.planned) < _NOTABLE_BYTES:
            return False
        return self.error is None or abs(self.error) > _NOTABLE[self.term]


@dataclass(frozen=True, slots=True)
class Record:
    """What vLLM reported after a start, and what the planner alone had expected (`planned_`). `kv_bytes` is
    whole blocks, so that vLLM makes the same cache from it again. None where vLLM reported nothing, or the
    layout is not known.

    `is_cold` is the one condition that the fingerprint does not have (it has runner, graphs and LoRA by
    version, environment and flags): whether the compile cache was empty, which takes more memory.
    `asleep_bytes`: what the engine was seen to keep asleep."""

    fingerprint: str
    requested_bytes: int
    kv_tokens: int | None = None
    planned_kv_tokens: int | None = None
    kv_bytes: int | None = None
    weights_bytes: int | None = None
    planned_weights_bytes: int | None = None
    graph_bytes: int | None = None
    planned_graph_bytes: int | None = None
    planned_bar_tokens: int = 0
    is_cold: bool | None = None
    asleep_bytes: int | None = None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        pairs = (
            ("kv_tokens", self.planned_kv_tokens, self.kv_tokens, self.planned_bar_tokens),
            ("weights_bytes", self.planned_weights_bytes, self.weights_bytes, 0),
            ("graph_bytes", self.planned_graph_bytes, self.graph_bytes, 0),
        )
        return tuple(
            Comparison(term, planned, said, bar)
            for term, planned, said, bar in pairs
            if planned is not None and said is not None
        )

    @property
    def learned(self) -> Learned:
        return Learned(
            self.weights_bytes, self.graph_bytes, self.kv_bytes, self.requested_bytes, self.is_cold
        )

    @property
    def unmeasured(self) -> Learned:
        """What holds under any condition: not the step."""
        return Learned(self.weights_bytes, self.graph_bytes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Raises `ValueError` for anything but a record of this version."""
        known = {field.name for field in fields(cls)}
        if not known - {"asleep_bytes"} <= data.keys() <= known or not isinstance(data["fingerprint"], str):
            raise ValueError("not a record")
        others = ("fingerprint", "is_cold")
        numbers = (value for name, value in data.items() if name not in others and value is not None)
        if not all(type(value) is int and value >= 0 for value in numbers):
            raise ValueError("not a record")
        if data["is_cold"] not in (True, False, None) or data["planned_bar_tokens"] is None:
            raise ValueError("not a record")
        return cls(**data)


def fingerprint(
    engine: EngineConfig, device: Device, vllm: str, model_identity: str, environ: Mapping[str, str]
) -> str:
    """A digest of everything that affects memory: the model's files, vLLM, flags, environment, device,
    fraction. `environ` is the daemon's. (A digest, because the facts may contain secrets.)"""
    facts = [
        engine.model,
        model_identity,
        engine.runner,
        str(engine.gpu_memory_utilization.normalize()),
        sorted((name, str(value)) for name, value in engine.vllm_args.items()),
        sorted({**_inherited(environ), **engine.env}.items()),
        vllm,
        device.name,
        device.usable_bytes,
        *([f"sleep level {engine.sleep_level}"] if engine.sleep_level else []),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


# Inherited variables that affect how vLLM and torch use memory; those for paths, logging and keys do not.
_INHERITED = re.compile(
    r"(?:VLLM|PYTORCH|TORCH|NCCL|CUDA)_(?!CACHE|CONFIG_ROOT|LOGGING|NO_USAGE|API_KEY|VISIBLE)"
)


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if _INHERITED.match(name)}


def block_bytes(cache: KvCache, tokens: int, said_length: int) -> int | None:
    """The size of the whole blocks that hold `tokens`; None where the layout does not arrive at exactly these
    tokens, and so is not vLLM's."""
    if not cache.groups or said_length != cache.demand.max_model_len:
        return None
    blocks = round(tokens / said_length * cache.blocks_per_request)
    size = blocks * cache.block_bytes
    return size if cache.capacity(size).tokens == tokens else None


def may_pin(engine: EngineConfig) -> bool:
    """Whether a learned KV cache size may be passed to vLLM: `learn` is on, or the engine sleeps and must
    find its size again; and none is configured."""
    return (engine.learn or engine.sleep_level > 0) and kv_cache_bytes(engine.vllm_args) is None


def planned_tokens(outcome: Outcome | None, *, is_cold: bool | None = None) -> tuple[int | None, int]:
    """The KV cache and its error, of a start with this compile cache; a start of which that is not known is
    planned as a cold one."""
    if outcome is None or not outcome.fits or not outcome.kv_cache.groups:
        return None, 0
    terms = outcome.terms
    size = outcome.kv_bytes + (terms.cold_bytes if is_cold is False and outcome.is_measured else 0)
    tokens = outcome.kv_cache.capacity(size).tokens
    bar = terms.bar_bytes if outcome.is_measured else 0
    return tokens, tokens - outcome.kv_cache.capacity(size - bar).tokens
