"""What one layer keeps in the KV cache, as vLLM declares it (`KVCacheSpec`, vllm/v1/kv_cache_interface.py).

A page is what a layer takes of one block; a request takes whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides how many blocks a request takes. `in_flight` is in tokens: `max_num_batched_tokens` times
    the batches at once, 2 with asynchronous scheduling (`max_in_flight_tokens`, vllm/config/vllm.py)."""

    max_model_len: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Keys and values of every token, or with `window` of the last ones alone.

    `token_bytes` is what a token takes in this layer on one GPU: `kv_heads * (key + value size) * element`
    for attention with heads (MHA, GQA, MQA); `(kv_lora_rank + rope size) * element` for MLA, which every GPU
    holds whole (`AttentionSpec.unpadded_page_size_bytes`, `MLAAttentionSpec`).
    """

    token_bytes: int
    block_size: int
    window: int | None = None
    chunk: int | None = None
    is_mla: bool = False

    @property
    def page_bytes(self) -> int:
        return self.token_bytes * self.block_size

    def blocks(self, demand: Demand) -> int:
        """`max_admission_blocks_per_request`; a window may begin inside a block, so it takes one more."""
        if self.window is not None:
            held = min(self.window - 1 + demand.in_flight, demand.max_model_len)
            return ceil_div(held, self.block_size) + 1
        if self.chunk is not None:
            return ceil_div(min(self.chunk + demand.in_flight, demand.max_model_len), self.block_size)
        return ceil_div(demand.max_model_len, self.block_size)


@dataclass(frozen=True, slots=True)
class State:
    """A state of fixed size per request (Mamba, linear attention), whatever the length (`MambaSpec`).

    `mode` "align" is vLLM's prefix caching for such states: two are held per request, and `checkpoints` more
    (one for Mamba 2: `get_kv_cache_spec` in vllm/model_executor/layers/mamba/mamba_mixer2.py).
    """

    state_bytes: int
    padded_bytes: int | None = None
    mode: Literal["none", "align"] = "none"
    checkpoints: int = 0

    @property
    def page_bytes(self) -> int:
        return self.padded_bytes or self.state_bytes

    def blocks(self, demand: Demand) -> int:
        return 2 + self.checkpoints if self.mode == "align" else 1


Layer = Attention | State


def ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)
