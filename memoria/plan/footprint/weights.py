"""Bytes of the weights on one GPU, from the stored tensors; and those tensors by the model's shape, where no
weights can be read.

vLLM loads floating-point tensors in the engine's dtype and keeps quantised ones (fp8, packed int4 of AWQ,
GPTQ and compressed-tensors, bitsandbytes) and their float32 scales as stored. Tensors that it does not load
are left out: a tied `lm_head`, layers beyond `num_hidden_layers` (multi-token prediction), the head of a
model that only pools, the pooler of a BERT that only embeds. The vocabulary is padded to a multiple of 64
(vllm/model_executor/layers/vocab_parallel_embedding.py), and so are a BERT's positions and token types
(models/bert.py). Compared with the parameters of real vLLM in tests/unit/plan/test_weights.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from memoria.plan.checkpoint import FLOATS, Tensor
from memoria.plan.footprint.kv_cache import ceil_div
from memoria.plan.footprint.model_types import ENCODERS, LayerKind
from memoria.plan.footprint.quantization import ONLINE
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

VOCABULARY_PADDING = 64
# The text model's layers, counted by `num_hidden_layers`: vision towers have depths of their own.
_TEXT_STACK = r"(?:(?:model|language_model|text_model|thinker|transformer|llm)\.)*"
_LAYER = re.compile(rf"{_TEXT_STACK}layers\.(\d{{1,4}})\.")
_HEAD = re.compile(r"(?:^|\.)lm_head\.")
# Computed frequencies, GPTQ's order of inputs; and all but one of the shapes of
# projections that vLLM fuses.
_NOT_LOADED = re.compile(r"\.rotary_emb\.|\.g_idx$|\.(?:[kv]|up)_proj\.weight_shape$")
# Multi-token prediction. In other models it is layers beyond the last.
_PREDICTING = re.compile(r"(?:^|\.)mtp\.")
# Encoders of images and audio, by their usual names.
_ENCODER = re.compile(
    r"^(?:model\.)?(?:visual|vision_(?:tower|model|encoder)|audio(?:_tower)?|multi_modal_projector"
    r"|embed_(?:vision|audio))\."
)
_KEYS_OR_VALUES = re.compile(r"\.[kv]_(?:proj|norm)\.")
_SCALE = re.compile(r"(?:scale|scale_inv|absmax|_scales|weight_scale_2|zero_point)$")
_WEIGHT_SCALE = re.compile(r"\.(?:weight_scale(?:_inv)?|scales)$")
_PACKED = re.compile(r"\.(?:weight_packed|qweight)$")
_VOCABULARY = re.compile(
    r"(?:embed_tokens(?:_per_layer)?|lm_head|word_embeddings|wte|embeddings\.tok_embeddings)\.weight$"
)
_BERT_ROWS = re.compile(r"(?:^|\.)embeddings\.(?:position|token_type)_embeddings\.weight$")
# Kept in float32 whatever the engine's dtype: a state's decay, a scoring head.
_FULL_PRECISION = re.compile(r"(?:\.A_log|^score\.weight)$")
_EXPERT = re.compile(r"\.experts\.")
_REPEATED = re.compile(r"_a_proj|mlp\.gate\.weight|router")
_BYTE_WIDE = frozenset({"F8_E4M3", "F8_E5M2", "I8"})


@dataclass(frozen=True, slots=True)
class Weights:
    """`by_dtype`: bytes on the GPU by stored type, or by the type that vLLM quantises to while loading.
    `exact`: from the headers of the files."""

    total_bytes: int
    by_dtype: tuple[tuple[str, int], ...]
    exact: bool


def weigh(
    tensors: Sequence[Tensor], shape: Shape, settings: Settings, *, pooling: bool, exact: bool = True
) -> Weights:
    # Scales of byte-wide weights are float32, however stored; those of packed weights have the engine's dtype
    # (compressed_tensors/schemes, fp8.py).
    packed = frozenset(_PACKED.sub("", tensor.name) for tensor in tensors if _PACKED.search(tensor.name))
    byte_wide = frozenset(
        tensor.name.removesuffix(".weight") for tensor in tensors if tensor.dtype in _BYTE_WIDE
    )
    sums: dict[str, int] = {}
    for stored in tensors:
        if _is_loaded(stored, shape, settings, pooling=pooling):
            tensor = _with_scale_dtype(stored, packed, byte_wide)
            size = _loaded_bytes(tensor, shape, settings)
            online = _online(tensor, shape, settings)
            dtype = online[1] if online else tensor.dtype
            sums[dtype] = sums.get(dtype, 0) + size
    if scales := _cache_scales(shape, settings):
        sums["F32"] = sums.get("F32", 0) + scales
    largest_first = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return Weights(sum(sums.values()), tuple(largest_first), exact)


def _with_scale_dtype(tensor: Tensor, packed: Collection[str], byte_wide: Collection[str]) -> Tensor:
    match = _WEIGHT_SCALE.search(tensor.name)
    if match is None or tensor.dtype not in FLOATS:
        return tensor
    layer = tensor.name[: match.start()]
    if layer in byte_wide:
        return replace(tensor, dtype="F32")
    return replace(tensor, dtype="F16") if layer in packed else tensor


def _cache_scales(shape: Shape, settings: Settings) -> int:
    """Bytes that go with every layer's cache: scales and zero points of compressed-tensors
    (`CompressedTensorsKVCacheMethod.create_weights`), four scales of fp8 except for MLA
    (`BaseKVCacheMethod.create_weights`, `Fp8Config.get_quant_method`)."""
    each = {"compressed_tensors": 3 * (4 + settings.dtype_bytes)}
    if shape.mla_rank is None:
        each["fp8"] = 4 * settings.dtype_bytes
    cached = sum(kind not in ("state", "none") for kind in shape.layers)
    return cached * each.get(shape.quantization or "", 0)


def scaled(weights: Weights, tensors: Sequence[Tensor], index_bytes: int) -> Weights:
    """`weights` of `tensors` that were derived from a configuration, scaled to the size really stored."""
    share = index_bytes / max(1, sum(tensor.stored_bytes for tensor in tensors))
    by_dtype = tuple((dtype, int(size * share)) for dtype, size in weights.by_dtype)
    return Weights(sum(size for _, size in by_dtype), by_dtype, exact=False)


def _is_loaded(tensor: Tensor, shape: Shape, settings: Settings, *, pooling: bool) -> bool:
    if _HEAD.search(tensor.name) and (shape.tied or pooling):
        return False
    left_out = tensor.name.startswith(("pooler.dense.", "bert.pooler.")) and not _classifies(shape)
    left_out = left_out or (settings.text_only and _ENCODER.search(tensor.name) is not None)
    if left_out or _NOT_LOADED.search(tensor.name):
        return False
    if _PREDICTING.search(tensor.name):
        return settings.drafts_itself
    layer = _LAYER.match(tensor.name)
    if layer is None:
        return True
    number = int(layer[1])
    if number >= len(shape.layers):
        return settings.drafts_itself and number < len(shape.layers) + shape.predicting
    return shape.layers[number] != "shared" or not _KEYS_OR_VALUES.search(tensor.name)


def _classifies(shape: Shape) -> bool:
    """The only BERT for which vLLM loads the stored pooler."""
    return "BertForSequenceClassification" in (shape.config.get("architectures") or ())


def _loaded_bytes(tensor: Tensor, shape: Shape, settings: Settings) -> int:
    size = int(_elements(tensor, shape) * _element_bytes(tensor, shape, settings))
    size = _copies(tensor, shape) * ceil_div(size, _shards(tensor, shape, settings))
    return int(size * _padding(tensor, shape, settings))


def _padding(tensor: Tensor, shape: Shape, settings: Settings) -> float:
    """Kernels for MXFP4 experts need sizes in whole tiles
    (`mxfp4_round_up_hidden_size_and_intermediate_size`,
    vllm/model_executor/layers/fused_moe/oracle/mxfp4.py)."""
    if shape.quantization != "mxfp4" or not _EXPERT.search(tensor.name) or len(tensor.shape) < 2:
        return 1.0
    inner, outer = settings.expert_tiles
    part = ceil_div(shape.expert_intermediate, settings.tensor_parallel)
    padded = ceil_div(part, inner) * inner * ceil_div(shape.hidden, outer) * outer
    return padded * settings.tensor_parallel / (shape.expert_intermediate * shape.hidden)


def _copies(tensor: Tensor, shape: Shape) -> int:
    """Keys that also serve as values are loaded twice (Gemma 4's `attention_k_eq_v`, gemma4.py)."""
    layer = _LAYER.match(tensor.name)
    if layer is None or not shape.config.get("attention_k_eq_v") or ".k_proj." not in tensor.name:
        return 1
    return 2 if shape.layers[int(layer[1])] == "full" else 1


def _elements(tensor: Tensor, shape: Shape) -> int:
    if not tensor.shape or not tensor.shape[0] or not _is_padded(tensor, shape):
        return tensor.parameters
    rows = tensor.shape[0]
    return tensor.parameters // rows * ceil_div(rows, VOCABULARY_PADDING) * VOCABULARY_PADDING


def _is_padded(tensor: Tensor, shape: Shape) -> bool:
    if _VOCABULARY.search(tensor.name):
        return tensor.shape[0] in (shape.vocabulary, shape.config.get("vocab_size_per_layer_input"))
    return shape.encoder_only and bool(_BERT_ROWS.search(tensor.name))


def _element_bytes(tensor: Tensor, shape: Shape, settings: Settings) -> float:
    if tensor.dtype not in FLOATS or (tensor.dtype == "F32" and _SCALE.search(tensor.name)):
        return tensor.stored_bytes / tensor.parameters if tensor.parameters else 0
    if _FULL_PRECISION.search(tensor.name):
        return 4
    online = _online(tensor, shape, settings)
    return online[0] if online else settings.dtype_bytes


def _online(tensor: Tensor, shape: Shape, settings: Settings) -> tuple[float, str] | None:
    """Bytes per element and type of a weight that vLLM quantises while loading; None: not quantised."""
    online = ONLINE.get(settings.quantization or "") if shape.quantization is None else None
    if online is None or tensor.dtype not in FLOATS or not _is_linear(tensor):
        return None
    size = online.experts if _EXPERT.search(tensor.name) else online.linear
    return None if size is None else (size, online.dtype)


def _is_linear(tensor: Tensor) -> bool:
    return len(tensor.shape) >= 2 and tensor.name.endswith(("proj.weight", "gate_up_proj", "down_proj"))


def _shards(tensor: Tensor, shape: Shape, settings: Settings) -> int:
    """Matrices are divided among the GPUs. Vectors are repeated, and so are keys and values with fewer heads
    than GPUs (`QKVParallelLinear`), MLA's projections to the latent, and routers."""
    if len(tensor.shape) < 2 or _REPEATED.search(tensor.name):
        return 1
    if _KEYS_OR_VALUES.search(tensor.name) and shape.mla_rank is None:
        return min(settings.tensor_parallel, max(1, shape.kv_heads))
    return settings.tensor_parallel


# ---------------------------------------------------------------------- tensors by the model's shape

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BIASED = frozenset({"qwen2", "qwen2_moe"})  # of queries, keys and values
_HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "qwen3_next"})
GATED_DELTA = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})


def tensors_from_shape(shape: Shape) -> tuple[Tensor, ...]:
    """The tensors of a model of this shape: linear layers as quantised, everything else in its stored type.
    Exact in parameters for Llama and its descendants (Qwen, Mistral, Gemma, Phi-3, Mixtral and other mixtures
    of experts) and BERT; an estimate for other families."""
    return tuple(_bert(shape) if shape.model_type in ENCODERS else _decoder(shape))


def _decoder(shape: Shape) -> Iterator[Tensor]:
    dtype = _STORED.get(shape.stored_dtype or "", "BF16")
    hidden = shape.hidden
    yield Tensor("model.embed_tokens.weight", dtype, (shape.vocabulary, hidden))
    if not shape.tied:
        yield Tensor("lm_head.weight", dtype, (shape.vocabulary, hidden))
    for number, kind in enumerate(shape.layers):
        layer = f"model.layers.{number}"
        for norm in range(4 if shape.model_type in _FOUR_NORMS else 2):
            yield Tensor(f"{layer}.norm{norm}.weight", dtype, (hidden,))
        if kind == "state" and shape.model_type in GATED_DELTA:
            yield from _gated_delta_net(layer, shape, dtype)
        elif kind != "none":
            yield from _mla(layer, shape, dtype) if shape.mla_rank else _attention(layer, kind, shape, dtype)
        yield from _feed_forward(layer, number, shape, dtype)
    for number in range(shape.predicting):
        yield Tensor(f"mtp.layers.{number}.fc.weight", dtype, (hidden, 2 * hidden))
        layer = f"mtp.layers.{number}"
        yield from _mla(layer, shape, dtype) if shape.mla_rank else _attention(layer, "full", shape, dtype)
        yield from _feed_forward(layer, len(shape.layers) + number, shape, dtype)
    yield Tensor("model.norm.weight", dtype, (hidden,))
    if beside := int(shape.config.get("hidden_size_per_layer_input") or 0):  # Gemma 3n and 4
        rows = int(shape.config.get("vocab_size_per_layer_input") or shape.vocabulary)
        yield Tensor("model.embed_tokens_per_layer.weight", dtype, (rows, len(shape.layers) * beside))
        yield Tensor("model.per_layer_projections", dtype, (3 * len(shape.layers) * beside, hidden))


def _attention(layer: str, kind: LayerKind, shape: Shape, dtype: str) -> Iterator[Tensor]:
    count, size = shape.kv_heads, shape.head_size
    if kind == "full":
        count, size = shape.full_kv_heads, shape.full_head_size
    queries, keys = shape.heads * size, count * size
    # Qwen3-Next and its heirs gate each head's output with as many outputs of the same projection.
    gated = 2 if shape.config.get("attn_output_gate", shape.model_type in GATED_DELTA) else 1
    # A layer that shares another's cache has no keys or values of its own.
    kept = (
        (("q_proj", gated * queries),)
        if kind == "shared"
        else (("q_proj", gated * queries), ("k_proj", keys), ("v_proj", keys))
    )
    for name, outputs in kept:
        yield from _linear(f"{layer}.self_attn.{name}", outputs, shape.hidden, shape, dtype)
        if shape.model_type in _BIASED or shape.config.get("attention_bias") is True:
            yield Tensor(f"{layer}.self_attn.{name}.bias", dtype, (outputs,))
    yield from _linear(f"{layer}.self_attn.o_proj", shape.hidden, queries, shape, dtype)
    if shape.model_type in _HEAD_NORMS:
        for name in ("q_norm", "k_norm"):
            yield Tensor(f"{layer}.self_attn.{name}.weight", dtype, (size,))


def _gated_delta_net(layer: str, shape: Shape, dtype: str) -> Iterator[Tensor]:
    """Linear attention of Qwen3-Next and Qwen3.5 (vllm/model_executor/layers/mamba/gdn)."""
    config = shape.config
    heads = int(config["linear_num_value_heads"])
    keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    values = heads * int(config["linear_value_head_dim"])
    for name, outputs in (("in_proj_qkvz", 2 * (keys + values)), ("in_proj_ba", 2 * heads)):
        yield from _linear(f"{layer}.linear_attn.{name}", outputs, shape.hidden, shape, dtype)
    kernel = int(config["linear_conv_kernel_dim"])
    yield Tensor(f"{layer}.linear_attn.conv1d.weight", dtype, (2 * keys + values, kernel))
    yield from _linear(f"{layer}.linear_attn.out_proj", shape.hidden, values, shape, dtype)


def _mla(layer: str, shape: Shape, dtype: str) -> Iterator[Tensor]:
    config, rank = shape.config, shape.mla_rank or 0
    plain, rope = int(config["qk_nope_head_dim"]), shape.rope_size
    value, query_rank = int(config["v_head_dim"]), int(config.get("q_lora_rank") or 0)
    queries = shape.heads * (plain + rope)
    if query_rank:
        yield from _linear(f"{layer}.self_attn.q_a_proj", query_rank, shape.hidden, shape, dtype)
        yield Tensor(f"{layer}.self_attn.q_a_layernorm.weight", dtype, (query_rank,))
    yield from _linear(f"{layer}.self_attn.q_b_proj", queries, query_rank or shape.hidden, shape, dtype)
    yield from _linear(f"{layer}.self_attn.kv_a_proj_with_mqa", rank + rope, shape.hidden, shape, dtype)
    yield Tensor(f"{layer}.self_attn.kv_a_layernorm.weight", dtype, (rank,))
    yield from _linear(f"{layer}.self_attn.kv_b_proj", shape.heads * (plain + value), rank, shape, dtype)
    yield from _linear(f"{layer}.self_attn.o_proj", shape.hidden, shape.heads * value, shape, dtype)


def _feed_forward(layer: str, number: int, shape: Shape, dtype: str) -> Iterator[Tensor]:
    dense_first = int(shape.config.get("first_k_dense_replace") or 0)
    if not shape.experts or number < dense_first:
        yield from _gated(f"{layer}.mlp", shape.intermediate, shape, dtype)
        return
    if shape.model_type == "gemma4_text":  # experts beside a dense feed-forward, not in its place
        yield from _gated(f"{layer}.mlp", shape.intermediate, shape, dtype)
    yield Tensor(f"{layer}.mlp.gate.weight", dtype, (shape.experts, shape.hidden))
    for tensor in _gated(f"{layer}.mlp.experts.0", shape.expert_intermediate, shape, dtype):
        # One above the other: thousands of tensors of one shape cost the plan a second.
        yield replace(tensor, shape=(shape.experts * tensor.shape[0], *tensor.shape[1:]))
    shared = int(shape.config.get("n_shared_experts") or 0) * shape.expert_intermediate
    shared = shared or int(shape.config.get("shared_expert_intermediate_size") or 0)
    if shared:
        yield from _gated(f"{layer}.mlp.shared_experts", shared, shape, dtype)


def _gated(block: str, intermediate: int, shape: Shape, dtype: str) -> Iterator[Tensor]:
    for name in ("gate_proj", "up_proj"):
        yield from _linear(f"{block}.{name}", intermediate, shape.hidden, shape, dtype)
    yield from _linear(f"{block}.down_proj", shape.hidden, intermediate, shape, dtype)


def _linear(name: str, outputs: int, inputs: int, shape: Shape, dtype: str) -> Iterator[Tensor]:
    """A linear layer's weight as its quantisation stores it."""
    scheme = shape.scheme
    if scheme is not None and scheme.covers(name, expert=".experts." in name):
        yield from scheme.tensors(name, outputs, inputs)
    else:
        yield Tensor(f"{name}.weight", dtype, (outputs, inputs))


def _bert(shape: Shape) -> Iterator[Tensor]:
    dtype, hidden = _STORED.get(shape.stored_dtype or "", "F32"), shape.hidden
    modern = shape.model_type == "modernbert"
    yield Tensor("embeddings.word_embeddings.weight", dtype, (shape.vocabulary, hidden))
    if modern:  # the first layer's attention has no norm of its own, embeddings and end have one each
        yield Tensor("norms", dtype, (hidden,))
    else:
        yield Tensor("embeddings.position_embeddings.weight", dtype, (shape.positions or 0, hidden))
        yield Tensor(
            "embeddings.token_type_embeddings.weight",
            dtype,
            (int(shape.config.get("type_vocab_size", 2)), hidden),
        )
        yield Tensor("embeddings.LayerNorm", dtype, (2 * hidden,))
        yield Tensor("pooler.dense.weight", dtype, (hidden, hidden))
        yield Tensor("pooler.dense.bias", dtype, (hidden,))
    for number in range(len(shape.layers)):
        layer = f"encoder.layers.{number}"
        yield Tensor(f"{layer}.attention", dtype, (4 * hidden, hidden))
        # ModernBERT's feed-forward is gated, and has no biases
        yield Tensor(f"{layer}.intermediate", dtype, ((3 if modern else 2) * shape.intermediate, hidden))
        yield Tensor(f"{layer}.norms", dtype, (2 * hidden if modern else 4 * hidden,))
        if not modern:
            yield Tensor(f"{layer}.biases", dtype, (5 * hidden + shape.intermediate,))
