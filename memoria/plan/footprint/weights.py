"""Bytes of the weights on one GPU, from the stored tensors.

vLLM loads floating-point tensors in the engine's dtype and keeps quantised ones (fp8, packed int4 of AWQ,
GPTQ and compressed-tensors, bitsandbytes) and their float32 scales as stored. Tensors that it does not load
are left out: a tied `lm_head`, layers beyond `num_hidden_layers` (multi-token prediction), the head of a
model that only pools, the pooler of a BERT that only embeds. The vocabulary is padded to a multiple of 64
(vllm/model_executor/layers/vocab_parallel_embedding.py), and so are a BERT's positions and token types
(models/bert.py). Compared with the parameters of real vLLM in tests/unit/test_weights.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memoria.checkpoint.model_files import FLOATS, Tensor
from memoria.plan.footprint.layers import ceil_div
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

VOCABULARY_PADDING = 64
_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,4})\.")
_SCALE = re.compile(r"(?:scale|scale_inv|absmax|_scales|weight_scale_2|zero_point)$")
_VOCABULARY = re.compile(r"(?:embed_tokens|lm_head|word_embeddings|wte|embeddings\.tok_embeddings)\.weight$")
_BERT_ROWS = re.compile(r"(?:^|\.)embeddings\.(?:position|token_type)_embeddings\.weight$")
# Kept in float32 whatever the engine's dtype: a state's decay, the head that scores.
_FULL_PRECISION = re.compile(r"(?:\.A_log|^score\.weight)$")
# Quantisation while loading: bytes of an element of a linear layer's weight, its scales left out.
_ONLINE = {"fp8": 1.0, "experts-int8": 1.0, "bitsandbytes": 0.5, "fp8-per-tensor": 1.0}
# bitsandbytes keeps a float32 maximum per block of 64 values beside the four bits.
_BITSANDBYTES_SCALE = 4 / 64


@dataclass(frozen=True, slots=True)
class Weights:
    """`by_dtype` is what is on the GPU, by the stored type; `exact` where headers were read."""

    total_bytes: int
    by_dtype: tuple[tuple[str, int], ...]
    exact: bool


def weigh(
    tensors: Sequence[Tensor], shape: Shape, settings: Settings, *, pooling: bool, exact: bool = True
) -> Weights:
    sums: dict[str, int] = {}
    for tensor in tensors:
        if _is_loaded(tensor, shape, pooling=pooling):
            size = _loaded_bytes(tensor, shape, settings)
            sums[tensor.dtype] = sums.get(tensor.dtype, 0) + size
    largest_first = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return Weights(sum(sums.values()), tuple(largest_first), exact)


def _is_loaded(tensor: Tensor, shape: Shape, *, pooling: bool) -> bool:
    if tensor.name.startswith(("lm_head.", "model.lm_head.")) and (shape.tied or pooling):
        return False
    if tensor.name.startswith(("pooler.dense.", "bert.pooler.")) and not _classifies(shape):
        return False
    if tensor.name.startswith("mtp.") or ".rotary_emb." in tensor.name:
        return False
    layer = _LAYER.search(tensor.name)
    return layer is None or "vision" in tensor.name or int(layer[1]) < len(shape.layers)


def _classifies(shape: Shape) -> bool:
    """The one BERT of vLLM that has the pooler that was stored with it."""
    return "BertForSequenceClassification" in (shape.config.get("architectures") or ())


def _loaded_bytes(tensor: Tensor, shape: Shape, settings: Settings) -> int:
    return ceil_div(
        int(_elements(tensor, shape) * _element_bytes(tensor, shape, settings)),
        _shards(tensor, shape, settings),
    )


def _elements(tensor: Tensor, shape: Shape) -> int:
    if not tensor.shape or not tensor.shape[0] or not _is_padded(tensor, shape):
        return tensor.parameters
    rows = tensor.shape[0]
    return tensor.parameters // rows * ceil_div(rows, VOCABULARY_PADDING) * VOCABULARY_PADDING


def _is_padded(tensor: Tensor, shape: Shape) -> bool:
    if _VOCABULARY.search(tensor.name):
        return tensor.shape[0] == shape.vocabulary
    return shape.encoder_only and bool(_BERT_ROWS.search(tensor.name))


def _element_bytes(tensor: Tensor, shape: Shape, settings: Settings) -> float:
    if tensor.dtype not in FLOATS or (tensor.dtype == "F32" and _SCALE.search(tensor.name)):
        return tensor.stored_bytes / tensor.parameters if tensor.parameters else 0
    if _FULL_PRECISION.search(tensor.name):
        return 4
    if shape.quantization is None and settings.quantization in _ONLINE and _is_linear(tensor):
        scale = _BITSANDBYTES_SCALE if settings.quantization == "bitsandbytes" else 0.0
        return _ONLINE[settings.quantization] + scale
    return settings.dtype_bytes


def _is_linear(tensor: Tensor) -> bool:
    return len(tensor.shape) >= 2 and tensor.name.endswith(("proj.weight", "gate_up_proj", "down_proj"))


def _shards(tensor: Tensor, shape: Shape, settings: Settings) -> int:
    """Matrices are divided among the GPUs, vectors are repeated; so are keys and values of fewer heads than
    GPUs (`QKVParallelLinear`), MLA's projections to the latent, and a router."""
    if len(tensor.shape) < 2 or any(part in tensor.name for part in ("_a_proj", "mlp.gate.weight", "router")):
        return 1
    if any(part in tensor.name for part in ("k_proj", "v_proj")) and shape.mla_rank is None:
        return min(settings.tensor_parallel, max(1, shape.kv_heads))
    return settings.tensor_parallel
