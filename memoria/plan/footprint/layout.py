"""A model's layers as vLLM's KV cache sees them."""

from __future__ import annotations

from dataclasses import replace

from memoria.plan.footprint.layers import Attention, Layer, State, ceil_div
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import LayerKind, Shape
from memoria.plan.footprint.states import MAMBA2, state_bytes

# A hybrid of MLA and states keeps its blocks at multiples of this (`_align_hybrid_block_size`).
_MLA_HYBRID_BLOCK = 128


def kv_layers(shape: Shape, settings: Settings, ssm_dtype: str = "auto") -> list[Layer]:
    """Empty for encoders: they keep nothing of a request (`EncoderOnlyAttention`).

    Beside states, attention's block grows until its page is at least a state's, and the state's page is
    padded to it (`_align_hybrid_block_size`, vllm/platforms/interface.py).
    """
    if shape.encoder_only:
        return []
    attention = Attention(
        token_bytes=token_bytes(shape, settings),
        block_size=settings.block_size,
        is_mla=shape.mla_rank is not None,
    )
    parallel = shape.model_type == "falcon_h1"
    if "state" not in shape.layers and not parallel:
        return [_attention(kind, attention, shape) for kind in shape.layers if kind != "none"]
    state = State(
        state_bytes(shape, settings.tensor_parallel, settings.dtype_bytes, ssm_dtype),
        mode="align" if settings.prefix_caching else "none",
        checkpoints=1 if shape.model_type in MAMBA2 else 0,
    )
    if attention.token_bytes:
        attention, state = _aligned(attention, state)
    layers: list[Layer] = []
    for kind in shape.layers:
        if kind == "state":
            layers.append(state)
        elif kind != "none":
            layers += [_attention(kind, attention, shape), *([state] if parallel else [])]
    return layers


def token_bytes(shape: Shape, settings: Settings) -> int:
    """Of one token in one attention layer, on one GPU. Key and value heads are divided among the GPUs, but
    each has one at least; MLA's latent is not divided. `fp8` MLA keeps its own packing of 656 bytes only
    with sparse attention (`fp8_ds_mla`)."""
    if shape.mla_rank is not None:
        return (shape.mla_rank + shape.rope_size) * settings.kv_bytes
    heads = max(1, shape.kv_heads // settings.tensor_parallel)
    return heads * (shape.head_size + shape.value_size) * settings.kv_bytes


def _attention(kind: LayerKind, attention: Attention, shape: Shape) -> Attention:
    if kind == "sliding":
        return replace(attention, window=shape.window)
    if kind == "chunked":
        return replace(attention, chunk=shape.chunk)
    return attention


def _aligned(attention: Attention, state: State) -> tuple[Attention, State]:
    unit = max(attention.block_size, _MLA_HYBRID_BLOCK) if attention.is_mla else attention.block_size
    block = max(attention.block_size, unit * ceil_div(state.state_bytes, unit * attention.token_bytes))
    grown = replace(attention, block_size=block)
    return grown, replace(state, padded_bytes=grown.page_bytes)
