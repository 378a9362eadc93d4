"""How vLLM divides its KV cache: layers into groups, groups into one pool of blocks, blocks among requests.

A layer declares what it keeps (`KVCacheSpec`, vllm/v1/kv_cache_interface.py). A page is one layer's part of a
block; a request takes whole blocks. The integers, and the one float, are those of `get_kv_cache_groups`,
`get_kv_cache_config_from_groups` and `get_kv_cache_capacity` in vllm/v1/core/kv_cache_utils.py (0.32), so
that both arrive at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides the blocks per request. `in_flight` is in tokens: `max_num_batched_tokens` times the
    concurrent batches, 2 with asynchronous scheduling (`max_in_flight_tokens`, vllm/config/vllm.py)."""

    max_model_len: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Keys and values of every token, or with `window` only of the last ones.

    `token_bytes` is one token in this layer on one GPU: `kv_heads * (key + value size) * element` for
    attention with heads (MHA, GQA, MQA); `(kv_lora_rank + rope size) * element` for MLA, of which every GPU
    has a full copy (`AttentionSpec.unpadded_page_size_bytes`, `MLAAttentionSpec`).
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
        """`max_admission_blocks_per_request`. A window may begin inside a block, so it takes one more."""
        if self.window is not None:
            kept = min(self.window - 1 + demand.in_flight, demand.max_model_len)
            return ceil_div(kept, self.block_size) + 1
        if self.chunk is not None:
            return ceil_div(min(self.chunk + demand.in_flight, demand.max_model_len), self.block_size)
        return ceil_div(demand.max_model_len, self.block_size)


@dataclass(frozen=True, slots=True)
class State:
    """A state of fixed size per request (Mamba, linear attention), whatever the length (`MambaSpec`).

    `mode` "align" is vLLM's prefix caching for such states: two per request, and `checkpoints` more (one for
    Mamba 2: `get_kv_cache_spec` in vllm/model_executor/layers/mamba/mamba_mixer2.py). Speculative decoding
    keeps one for each of `draft_tokens`.
    """

    state_bytes: int
    padded_bytes: int | None = None
    mode: Literal["none", "align"] = "none"
    checkpoints: int = 0
    draft_tokens: int = 0

    @property
    def page_bytes(self) -> int:
        return self.padded_bytes or self.state_bytes

    def blocks(self, demand: Demand) -> int:
        return self.draft_tokens + (2 + self.checkpoints if self.mode == "align" else 1)


Layer = Attention | State


def ceil_div(amount: int, size: int) -> int:
    return -(-amount // size)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share one block table. A block holds a page of each."""

    layer: Layer
    count: int


@dataclass(frozen=True, slots=True)
class KvCache:
    """The layout of one model's cache. Encoders have no groups: they cache nothing."""

    groups: tuple[Group, ...]
    demand: Demand
    least_blocks: int = 0  # vLLM refuses fewer

    @property
    def block_bytes(self) -> int:
        """One block of the shared pool, sized for the largest group."""
        return max((group.count * group.layer.page_bytes for group in self.groups), default=0)

    @property
    def blocks_per_request(self) -> int:
        return sum(group.layer.blocks(self.demand) for group in self.groups)

    @property
    def request_bytes(self) -> int:
        """A request of `max_model_len` tokens."""
        return self.blocks_per_request * self.block_bytes

    @property
    def least_bytes(self) -> int:
        """The smallest cache that vLLM starts with: one request, and the block it reserves."""
        blocks = max(self.blocks_per_request + 1, self.least_blocks)
        return blocks * self.block_bytes if self.groups else 0

    def capacity(self, available_bytes: int) -> Capacity:
        """What a cache of `available_bytes` holds."""
        if not self.groups:
            return Capacity(0, 0, 0.0)
        blocks = max(0, available_bytes) // self.block_bytes
        concurrency = blocks / self.blocks_per_request
        return Capacity(blocks, int(concurrency * self.demand.max_model_len), concurrency)

    def bytes_for(self, *, concurrency: float = 1.0, tokens: int = 0) -> int:
        """The smallest cache with which vLLM starts and that holds `concurrency` requests of `max_model_len`,
        and `tokens`. Capacity grows with every block, so the search goes up from the exact quotient."""
        if not self.groups:
            return 0
        length, per_request = self.demand.max_model_len, self.blocks_per_request
        blocks = max(
            per_request + 1, self.least_blocks, int(concurrency * per_request), tokens * per_request // length
        )
        while not _enough(self.capacity(blocks * self.block_bytes), concurrency, tokens):
            blocks += 1
        return blocks * self.block_bytes

    def longest(self, available_bytes: int) -> int:
        """The largest `max_model_len` with which vLLM starts; 0 where not even one token fits
        (`_estimate_max_model_len_from_groups`)."""
        low, high = 0, self.demand.max_model_len
        while low < high:
            middle = (low + high + 1) // 2
            shorter = replace(self, demand=replace(self.demand, max_model_len=middle))
            low, high = (middle, high) if shorter.least_bytes <= available_bytes else (low, middle - 1)
        return low


@dataclass(frozen=True, slots=True)
class Capacity:
    """`tokens` and `concurrency` are the figures in vLLM's log (`KV cache size: ...`)."""

    blocks: int
    tokens: int
    concurrency: float


def lay_out(
    layers: Sequence[Layer], demand: Demand, *, hybrid: bool = True, least_blocks: int = 0
) -> KvCache:
    """`hybrid` False treats windows as full attention (`disable_hybrid_kv_cache_manager`). `least_blocks`
    counts for states alone."""
    if not any(isinstance(layer, State) for layer in layers):
        least_blocks = 0
    if not hybrid and any(is_full(layer) for layer in layers):
        layers = [
            replace(layer, window=None, chunk=None) if isinstance(layer, Attention) else layer
            for layer in layers
        ]
    return KvCache(tuple(_groups(_one_page_size(layers))), demand, least_blocks)


def is_full(layer: Layer) -> bool:
    return isinstance(layer, Attention) and layer.window is None and layer.chunk is None


def _enough(capacity: Capacity, concurrency: float, tokens: int) -> bool:
    return capacity.concurrency >= concurrency and capacity.tokens >= tokens


def _one_page_size(layers: Sequence[Layer]) -> list[Layer]:
    """Smaller pages grow to the largest: attention by larger blocks, states by padding
    (`unify_kv_cache_spec_page_size`). Full attention alone is one group anyway, and stays as it is."""
    if all(is_full(layer) for layer in layers):
        return list(layers)
    largest = max(layer.page_bytes for layer in layers)
    return [_grown(layer, largest) for layer in layers]


def _grown(layer: Layer, page_bytes: int) -> Layer:
    if layer.page_bytes == page_bytes:
        return layer
    if isinstance(layer, State):
        return replace(layer, padded_bytes=page_bytes)
    if page_bytes % layer.page_bytes == 0:
        return replace(layer, block_size=layer.block_size * (page_bytes // layer.page_bytes))
    # Not divisible: the page is padded and has no more tokens, so each token counts as larger.
    return replace(layer, token_bytes=ceil_div(page_bytes, layer.block_size))


def _groups(layers: Sequence[Layer]) -> list[Group]:
    """`_get_kv_cache_groups_uniform_page_size`: every kind of layer is split into groups as large as the
    smallest kind; or as the largest, where that is less than half as large again."""
    if layers and all(is_full(layer) for layer in layers):
        return _one_group(layers)
    kinds: dict[Layer, int] = {}
    for layer in layers:
        kinds[layer] = kinds.get(layer, 0) + 1
    if not kinds:
        return []
    if len(kinds) == 1:
        return [Group(layer, count) for layer, count in kinds.items()]
    smallest, largest = min(kinds.values()), max(kinds.values())
    size = largest if largest < smallest * 1.5 else smallest
    return [group for layer, count in kinds.items() for group in _split(layer, count, size)]


def _split(layer: Layer, count: int, size: int) -> list[Group]:
    groups = ceil_div(count, size)
    return [Group(layer, len(range(first, count, groups))) for first in range(groups)]


def _one_group(layers: Sequence[Layer]) -> list[Group]:
    """Full attention of any page sizes shares its blocks (`UniformTypeKVCacheSpecs`): one group, whose block
    is the sum of its pages."""
    kinds = set(layers)
    if len(kinds) == 1:
        return [Group(layers[0], len(layers))]
    block_size = max(layer.block_size for layer in layers if isinstance(layer, Attention))
    together = sum(layer.token_bytes for layer in layers if isinstance(layer, Attention))
    return [Group(Attention(together, block_size), 1)]
