"""What an engine loads beside its model: LoRA adapters' slots, and what proposes tokens in speculative
decoding (vllm/lora/layers, vllm/v1/spec_decode)."""

from __future__ import annotations

from dataclasses import replace

from memoria.plan.checkpoint import ModelFiles, Tensor
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape, read_shape
from memoria.plan.footprint.weights import tensors_from_shape, weigh

# Their embeddings and output heads have slots too (`embedding_modules`).
_WITH_EMBEDDINGS = frozenset({"llama", "mistral", "mixtral", "qwen3"})
# Divided among GPUs by their inputs; all other matrices by their outputs.
_BY_INPUTS = ("o_proj.weight", "down_proj.weight", "out_proj.weight")


def lora_bytes(shape: Shape, settings: Settings) -> int:
    """Slots for `max_loras` adapters of `max_lora_rank`, allocated at once for every matrix: its inputs by
    the rank, and the rank by its outputs. Without `fully_sharded_loras` the side that is not divided is on
    every GPU."""
    if not settings.max_loras:
        return 0
    widths = 0
    for tensor in tensors_from_shape(replace(shape, scheme=None)):
        if len(tensor.shape) == 2 and tensor.name.endswith("proj.weight"):
            outputs, inputs = tensor.shape
            inputs *= shape.experts if ".experts." in tensor.name else 1
            if tensor.name.endswith(_BY_INPUTS):
                widths += inputs // settings.tensor_parallel + outputs
            else:
                widths += inputs + outputs // settings.tensor_parallel
    if shape.model_type in _WITH_EMBEDDINGS:
        widths += 2 * (shape.vocabulary + shape.hidden)
    return settings.max_loras * settings.max_lora_rank * widths * settings.dtype_bytes


def draft_bytes(draft: ModelFiles, settings: Settings, method: str) -> int:
    """A draft model's weights on one GPU. EAGLE heads use the embeddings of the model that they draft for."""
    shape = read_shape(draft)
    shares = method.startswith("eagle")
    stored = draft.tensors or tensors_from_shape(shape)
    kept = [tensor for tensor in stored if not (shares and "embed_tokens" in tensor.name)]
    if shares and not draft.tensors:
        # three hidden states become one; its queries, keys and values see the embedding too
        kept.append(Tensor("fc.weight", "BF16", (shape.hidden, 3 * shape.hidden)))
    return weigh(kept, shape, settings, pooling=False, exact=bool(draft.tensors)).total_bytes
