"""A model's layers as vLLM's KV cache sees them."""

from __future__ import annotations

from dataclasses import replace

from memoria.plan.footprint.kv_dtype import latent_bytes, slot_bytes, unquantised_layers
from memoria.plan.footprint.layer_kinds import LayerKind
from memoria.plan.footprint.layers import Attention, Layer, State, ceil_div
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape
from memoria.plan.footprint.states import MAMBA2, state_bytes

# A hybrid of MLA and states keeps its blocks at multiples of this (`_align_hybrid_block_size`).
_MLA_HYBRID_BLOCK = 128
_WITHOUT_CACHE = frozenset({"shared", "none"})
# The indexer of sparse attention keeps a byte per element and a float32 scale per so many of them
# (`DeepseekV32Indexer`).
_INDEX_SIZE = 128


def kv_layers(shape: Shape, settings: Settings) -> list[Layer]:
    """Empty for encoders: they keep nothing of a request (`EncoderOnlyAttention`).

    Beside states, attention's block grows until its page is at least a state's, and the state's page is
    padded to it (`_align_hybrid_block_size`, vllm/platforms/interface.py).
    """
    if shape.encoder_only:
        return []
    parallel = shape.model_type == "falcon_h1"
    if "state" not in shape.layers and not parallel:
        return _attention_layers(shape, settings)
    state = State(
        state_bytes(shape, settings),
        mode="align" if settings.prefix_caching else "none",
        checkpoints=1 if shape.model_type in MAMBA2 else 0,
    )
    attention = _attention("full", shape, settings)
    if attention.token_bytes and (parallel or set(shape.layers) - {"state", "none"}):
        attention, state = _aligned(attention, state)
    layers: list[Layer] = []
    for kind in shape.layers:
        if kind == "state":
            layers.append(state)
        elif kind not in _WITHOUT_CACHE:
            layers += [replace(attention, window=_window(kind, shape)), *([state] if parallel else [])]
    return layers


def _attention_layers(shape: Shape, settings: Settings) -> list[Layer]:
    """With the cache of the indexer, where attention is sparse, beside each layer that has one."""
    wide = unquantised_layers(settings.kv_dtype, len(shape.layers), hybrid=False)
    layers: list[Layer] = []
    for number, kind in enumerate(shape.layers):
        if kind in _WITHOUT_CACHE:
            continue
        layers.append(
            _attention(kind, shape, settings, kv_dtype=settings.model_dtype if number in wide else None)
        )
        if shape.is_sparse and _has_indexer(number, shape):
            size = int(shape.config.get("index_head_dim") or _INDEX_SIZE)
            scaled = size + size // _INDEX_SIZE * 4
            layers.append(Attention(scaled, settings.block_size, is_mla=True))
    return layers


def token_bytes(kind: LayerKind, shape: Shape, settings: Settings, kv_dtype: str | None = None) -> int:
    """Of one token in one attention layer, on one GPU. Key and value heads are divided among the GPUs, but
    each has one at least; MLA's latent is not divided."""
    kept_as = kv_dtype or settings.kv_dtype
    if shape.mla_rank is not None:
        return latent_bytes(kept_as, shape.mla_rank + shape.rope_size, sparse=shape.is_sparse)
    count, size = shape.kv_heads, shape.head_size
    if kind == "full":
        count, size = shape.full_kv_heads, shape.full_head_size
    value = shape.value_size if size == shape.head_size else size
    return max(1, count // settings.tensor_parallel) * slot_bytes(kept_as, size, value)


def _attention(kind: LayerKind, shape: Shape, settings: Settings, kv_dtype: str | None = None) -> Attention:
    return Attention(
        token_bytes=token_bytes(kind, shape, settings, kv_dtype),
        block_size=settings.block_size,
        window=_window(kind, shape),
        chunk=shape.chunk if kind == "chunked" else None,
        is_mla=shape.mla_rank is not None,
    )


def _window(kind: LayerKind, shape: Shape) -> int | None:
    return shape.window if kind == "sliding" else None


def _has_indexer(number: int, shape: Shape) -> bool:
    """Other layers take the positions that an earlier one has chosen (`DeepseekV32Attention`,
    vllm/models/deepseek_v32/attention.py)."""
    pattern = shape.config.get("index_topk_pattern")
    if pattern is not None:
        return not (number < len(pattern) and pattern[number] == "S")
    offset = int(shape.config.get("index_skip_topk_offset") or 2)
    return max(number - offset + 1, 0) % int(shape.config.get("index_topk_freq") or 1) == 0


def _aligned(attention: Attention, state: State) -> tuple[Attention, State]:
    unit = max(attention.block_size, _MLA_HYBRID_BLOCK) if attention.is_mla else attention.block_size
    block = max(attention.block_size, unit * ceil_div(state.state_bytes, unit * attention.token_bytes))
    grown = replace(attention, block_size=block)
    return grown, replace(state, padded_bytes=grown.page_bytes)
