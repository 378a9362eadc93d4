"""The tensors that a model of this shape has, where its weights are not there to be read.

Exact in parameters for Llama and its descendants (Qwen, Mistral, Gemma, Phi-3, Mixtral and other mixtures of
experts, BERT); for other families an estimate.
"""

from __future__ import annotations

from collections.abc import Iterator

from memoria.plan.checkpoint.model_files import Tensor
from memoria.plan.footprint.layer_kinds import LayerKind
from memoria.plan.footprint.model_types import ENCODERS
from memoria.plan.footprint.shape import Shape

_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BIASED = frozenset({"qwen2", "qwen2_moe"})  # of queries, keys and values
_HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "qwen3_next"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})


def tensors_from_shape(shape: Shape) -> tuple[Tensor, ...]:
    """Linear layers in the shape's quantisation, everything else in its stored type."""
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
        if kind != "none":
            yield from _mla(layer, shape, dtype) if shape.mla_rank else _attention(layer, kind, shape, dtype)
        yield from _feed_forward(layer, number, shape, dtype)
    yield Tensor("model.norm.weight", dtype, (hidden,))
    if beside := int(shape.config.get("hidden_size_per_layer_input") or 0):  # Gemma 3n and 4
        rows = int(shape.config.get("vocab_size_per_layer_input") or shape.vocabulary)
        yield Tensor("model.embed_tokens_per_layer.weight", dtype, (rows, len(shape.layers) * beside))


def _attention(layer: str, kind: LayerKind, shape: Shape, dtype: str) -> Iterator[Tensor]:
    count, size = shape.kv_heads, shape.head_size
    if kind == "full":
        count, size = shape.full_kv_heads, shape.full_head_size
    queries, keys = shape.heads * size, count * size
    # A layer that shares another's cache has no keys and values of its own.
    kept = (
        (("q_proj", queries),)
        if kind == "shared"
        else (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
    )
    for name, outputs in kept:
        yield from _linear(f"{layer}.self_attn.{name}", outputs, shape.hidden, shape, dtype)
        if shape.model_type in _BIASED or shape.config.get("attention_bias") is True:
            yield Tensor(f"{layer}.self_attn.{name}.bias", dtype, (outputs,))
    yield from _linear(f"{layer}.self_attn.o_proj", shape.hidden, queries, shape, dtype)
    if shape.model_type in _HEAD_NORMS:
        for name in ("q_norm", "k_norm"):
            yield Tensor(f"{layer}.self_attn.{name}.weight", dtype, (size,))


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
    yield Tensor(f"{layer}.mlp.gate.weight", dtype, (shape.experts, shape.hidden))
    for expert in range(shape.experts):
        yield from _gated(f"{layer}.mlp.experts.{expert}", shape.expert_intermediate, shape, dtype)
    shared = int(shape.config.get("n_shared_experts") or 0) * shape.expert_intermediate
    shared = shared or int(shape.config.get("shared_expert_intermediate_size") or 0)
    if shared:
        yield from _gated(f"{layer}.mlp.shared_experts", shared, shape, dtype)


def _gated(block: str, intermediate: int, shape: Shape, dtype: str) -> Iterator[Tensor]:
    for name in ("gate_proj", "up_proj"):
        yield from _linear(f"{block}.{name}", intermediate, shape.hidden, shape, dtype)
    yield from _linear(f"{block}.down_proj", shape.hidden, intermediate, shape, dtype)


def _linear(name: str, outputs: int, inputs: int, shape: Shape, dtype: str) -> Iterator[Tensor]:
    """A linear layer's weight as the method of quantisation stores it."""
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
