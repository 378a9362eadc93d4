"""A model's layers as vLLM's KV cache sees them: attention, and states of fixed size.

Shapes of the states (Mamba, linear attention, short convolutions): `MambaStateShapeCalculator`
(vllm/model_executor/layers/mamba/mamba_utils.py) with the arguments of each model's
`get_mamba_state_shape_from_config`. Sizes are in bytes per layer on one GPU.
"""

from __future__ import annotations

from dataclasses import replace

from memoria.plan.footprint.kv_cache import Attention, Layer, State, ceil_div
from memoria.plan.footprint.kv_dtype import latent_bytes, slot_bytes, unquantised_layers
from memoria.plan.footprint.model_types import LayerKind, UnknownModelError
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

# Tokens. Blocks of a hybrid of MLA and states are multiples of this (`_align_hybrid_block_size`).
_MLA_HYBRID_BLOCK = 128
_WITHOUT_CACHE = frozenset({"shared", "none"})
# The indexer of sparse attention keeps a byte per element, and a float32 scale per this many elements
# (`DeepseekV32Indexer`).
_INDEX_SIZE = 128


def kv_layers(shape: Shape, settings: Settings) -> list[Layer]:
    """Every layer that caches something; none for encoders (`EncoderOnlyAttention`).

    In a hybrid with states, attention's block grows until its page is at least as large as a state's, and the
    state's page is padded to it (`_align_hybrid_block_size`, vllm/platforms/interface.py).
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
        draft_tokens=settings.draft_tokens,
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
    return layers + [attention] * _predicting(shape, settings)


def _predicting(shape: Shape, settings: Settings) -> int:
    """Layers of multi-token prediction, which attend to everything."""
    return shape.predicting if settings.drafts_itself else 0


def _attention_layers(shape: Shape, settings: Settings) -> list[Layer]:
    """Attention layers, and the indexer caches of sparse attention."""
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
    return layers + [_attention("full", shape, settings)] * _predicting(shape, settings)


def token_bytes(kind: LayerKind, shape: Shape, settings: Settings, kv_dtype: str | None = None) -> int:
    """One token in one attention layer, on one GPU. Key and value heads are divided among the GPUs, at least
    one each; MLA's latent is not divided."""
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
    """Layers without an indexer reuse the positions that an earlier one chose (`DeepseekV32Attention`,
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


# ---------------------------------------------------------------------- states of fixed size

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MAMBA2 = frozenset({"falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h"})


def state_bytes(shape: Shape, settings: Settings) -> int:
    """One layer's state for one request. Raises `UnknownModelError` for a state of an unsupported kind."""
    # A convolution keeps its inputs for every token that may be taken back.
    config, ranks, drafts = shape.config, settings.tensor_parallel, settings.draft_tokens
    convolution, temporal = _element_bytes(shape, settings)
    if shape.model_type in MAMBA2:
        return _mamba2(shape, settings, convolution, temporal)
    if shape.model_type == "jamba":
        inner = config["mamba_expand"] * shape.hidden // ranks
        return int(inner * ((config["mamba_d_conv"] - 1) * convolution + config["mamba_d_state"] * temporal))
    if shape.model_type in ("falcon_mamba", "mamba"):
        inner = int(config["expand"] * shape.hidden) // ranks
        return int(inner * ((config["conv_kernel"] - 1) * convolution + config["state_size"] * temporal))
    if shape.model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        return _gated_delta_net(shape, settings, convolution, temporal)
    if shape.model_type in ("lfm2", "lfm2_moe"):
        channels = int(config.get("conv_dim", shape.hidden)) // ranks
        return int(channels * (config["conv_L_cache"] - 1 + drafts) * convolution)
    if shape.model_type == "kimi_linear":
        linear = config["linear_attn_config"]
        heads, size = linear["num_heads"], linear["head_dim"]
        channels = 3 * heads * size // ranks
        kept = channels * (linear["short_conv_kernel_size"] - 1 + drafts) * convolution
        return int(kept + heads // ranks * size * size * temporal)
    raise UnknownModelError(f"this planner does not support the states of `{shape.model_type}`")


def _element_bytes(shape: Shape, settings: Settings) -> tuple[int, int]:
    """Element sizes of the convolution and of the state. Without flags, some models have defaults of their
    own (vllm/model_executor/models/config.py; `kda_state_dtype` in mamba_utils.py)."""
    convolution = _BYTES.get(settings.convolution_dtype, settings.dtype_bytes)
    chosen = settings.state_dtype
    if chosen == "auto":
        key = {"nemotron_h": "mamba_ssm_cache_dtype"}.get(shape.model_type, "mamba_ssm_dtype")
        fallback = "float32" if shape.model_type in ("kimi_linear", "nemotron_h") else "auto"
        chooses = shape.model_type in ("nemotron_h", "qwen3_5_text", "qwen3_5_moe_text")
        chosen = str(shape.config.get(key) or fallback) if chooses else fallback
    return convolution, _BYTES.get(chosen, convolution)


def _mamba2(shape: Shape, settings: Settings, convolution_bytes: int, temporal_bytes: int) -> int:
    """Both states of a Mamba 2 layer (`mamba2_state_shape`), in bytes."""
    config, ranks = shape.config, settings.tensor_parallel
    if shape.model_type in ("nemotron_h", "mamba2"):
        heads = config.get("mamba_num_heads") or config["num_heads"]
        size = config.get("mamba_head_dim") or config["head_dim"]
        inner = heads * size if shape.model_type == "nemotron_h" else config["expand"] * shape.hidden
        groups, kernel = config["n_groups"], config["conv_kernel"]
        state = config.get("ssm_state_size") or config["state_size"]
    else:
        heads, size = config["mamba_n_heads"], config["mamba_d_head"]
        inner = config.get("mamba_d_ssm") or config["mamba_expand"] * shape.hidden
        groups, kernel, state = config["mamba_n_groups"], config["mamba_d_conv"], config["mamba_d_state"]
    if groups % ranks:
        groups = ranks  # what cannot be divided among the GPUs is repeated
    convolution = (inner + 2 * groups * state) // ranks * (kernel - 1 + settings.draft_tokens)
    temporal = heads // ranks * size * state
    return int(convolution * convolution_bytes + temporal * temporal_bytes)


def _gated_delta_net(shape: Shape, settings: Settings, convolution_bytes: int, state_size: int) -> int:
    config, ranks = shape.config, settings.tensor_parallel
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_size, value_size = config["linear_key_head_dim"], config["linear_value_head_dim"]
    channels = (2 * key_size * keys + value_size * values) // ranks
    kept = config["linear_conv_kernel_dim"] - 1 + settings.draft_tokens
    convolution = channels * kept * convolution_bytes
    return int(convolution + values // ranks * value_size * key_size * state_size)
