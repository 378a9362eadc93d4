"""What an engine said of its memory at a start, and for which settings that holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from memoria.config.model import EngineConfig
from memoria.gpu.device import Device
from memoria.plan.budgets import kv_cache_bytes
from memoria.plan.footprint.kv_cache import KvCache
from memoria.plan.outcome import Learned, Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """`planned_kv_tokens` is what the planner alone had expected; `kv_bytes` are whole blocks, so that the
    same size given to vLLM makes the same cache. None where vLLM said nothing, or the layout is not known."""

    fingerprint: str
    requested_bytes: int
    kv_tokens: int | None = None
    planned_kv_tokens: int | None = None
    kv_bytes: int | None = None
    weights_bytes: int | None = None
    graph_bytes: int | None = None

    @property
    def error(self) -> float | None:
        """Of the plan: 0.02 where vLLM has two in a hundred tokens more than was planned."""
        if not self.kv_tokens or not self.planned_kv_tokens:
            return None
        return self.kv_tokens / self.planned_kv_tokens - 1

    @property
    def learned(self) -> Learned:
        return Learned(self.weights_bytes, self.graph_bytes, self.kv_bytes, self.requested_bytes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Raises `ValueError` on what another version, or nobody, wrote."""
        if data.keys() != {field.name for field in fields(cls)} or not isinstance(data["fingerprint"], str):
            raise ValueError("not a record")
        numbers = (value for name, value in data.items() if name != "fingerprint" and value is not None)
        if not all(type(value) is int and value >= 0 for value in numbers):
            raise ValueError("not a record")
        return cls(**data)


def fingerprint(engine: EngineConfig, device: Device, vllm: str, model_identity: str) -> str:
    """Different whenever anything is that moves memory: the model's files, vLLM, flags, environment, device,
    fraction. A digest: what is in the environment may be secret."""
    facts = [
        engine.model,
        model_identity,
        engine.runner,
        str(engine.gpu_memory_utilization.normalize()),
        sorted((name, str(value)) for name, value in engine.vllm_args.items()),
        sorted(engine.env.items()),
        vllm,
        device.name,
        device.usable_bytes,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def block_bytes(cache: KvCache, tokens: int, said_length: int) -> int | None:
    """The bytes of the whole blocks in which `tokens` were counted; None where the layout does not come to
    exactly these tokens, and so is not vLLM's."""
    if not cache.groups or said_length != cache.demand.max_model_len:
        return None
    blocks = round(tokens / said_length * cache.blocks_per_request)
    size = blocks * cache.block_bytes
    return size if cache.capacity(size).tokens == tokens else None


def may_pin(engine: EngineConfig) -> bool:
    """Whether a learnt KV cache may be given to vLLM: asked for, and no size is in force already."""
    return engine.learn and kv_cache_bytes(engine.vllm_args) is None


def is_worth_telling(record: Record) -> bool:
    """More than five in a hundred beside the plan: more than its estimates should be wrong by."""
    return record.error is not None and abs(record.error) > 0.05


def planned_tokens(outcome: Outcome | None) -> int | None:
    if outcome is None or not outcome.fits or not outcome.kv_cache.groups:
        return None
    return outcome.capacity.tokens
