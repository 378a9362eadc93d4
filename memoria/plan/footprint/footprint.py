"""One engine's memory, term by term, and what is not counted.

The peak of one step and the CUDA graphs are estimates, from the largest tensors alive at once; vLLM measures
both (`profile_run`, `profile_cudagraph_memory` in vllm/v1/worker/gpu_model_runner.py). What an engine reports
after a start replaces them in the next plan (`Learned`, memoria.plan.outcome).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.checkpoint import ModelFiles
from memoria.plan.footprint.kv_cache import Attention, Demand, KvCache, ceil_div, is_full, lay_out
from memoria.plan.footprint.layers import kv_layers
from memoria.plan.footprint.model_types import UnknownModelError, is_verified
from memoria.plan.footprint.quantization import REFUSED, REMARKS, unknown_method
from memoria.plan.footprint.settings import Machine, Settings, read_settings
from memoria.plan.footprint.shape import Shape, read_shape
from memoria.plan.footprint.weights import Weights, scaled, tensors_from_shape, weigh


@dataclass(frozen=True, slots=True)
class Footprint:
    """One GPU's share. `activation_bytes` and `graph_bytes` are estimates, the rest is exact except for what
    `caveats` list."""

    shape: Shape
    settings: Settings
    weights: Weights
    activation_bytes: int
    graph_bytes: int
    kv_cache: KvCache
    caveats: tuple[str, ...] = ()

    @property
    def token_bytes(self) -> int:
        """KV bytes of one more token of a long request, in the layers that keep every token."""
        kept = (group.layer for group in self.kv_cache.groups if is_full(group.layer))
        block = self.kv_cache.block_bytes
        return sum(ceil_div(block, layer.block_size) for layer in kept if isinstance(layer, Attention))


def measure(
    files: ModelFiles,
    args: Mapping[str, Any],
    machine: Machine,
    *,
    pooling: bool,
    environ: Mapping[str, str] | None = None,
    weights: Weights | None = None,
) -> Footprint:
    """`environ` is the engine's own environment; `weights`, where already known, are not computed again.
    Raises `UnknownModelError`, with a message for the user, for a model of an unsupported kind or with a
    nonsensical configuration."""
    try:
        shape = read_shape(files)
        settings = read_settings(args, shape, machine, pooling=pooling, environ=environ)
        weights = weights or _weighed(files, shape, settings, pooling=pooling)
        kv_cache = lay_out(
            kv_layers(shape, settings),
            Demand(settings.max_model_len, settings.in_flight),
            hybrid=settings.hybrid,
        )
        activation = activation_bytes(shape, settings, pooling=pooling)
        graphs = graph_bytes(shape, settings)
    except UnknownModelError:
        raise
    except KeyError as error:
        raise UnknownModelError(f"config.json lacks {error}") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnknownModelError(f"config.json makes no sense here ({error})") from error
    if kv_cache.groups and kv_cache.block_bytes <= 0:
        raise UnknownModelError("by its config.json the model caches nothing per token")
    return Footprint(
        shape,
        settings,
        weights,
        activation,
        graphs,
        kv_cache,
        tuple(caveats(files, shape, settings, args)),
    )


def _weighed(files: ModelFiles, shape: Shape, settings: Settings, *, pooling: bool) -> Weights:
    stored = files.tensors or tensors_from_shape(shape)
    weights = weigh(stored, shape, settings, pooling=pooling, exact=bool(files.tensors))
    if not files.tensors and files.index_bytes:
        return scaled(weights, stored, files.index_bytes)
    return weights


# ---------------------------------------------------------------------- estimates

_HALF = 2  # bytes: activations are never quantised between layers
# The sampler sorts float32 logits: the logits, their copy and the sorted indices.
_LOGITS_COPIES = 3
_FLOAT = 4
# A captured graph keeps its inputs, outputs and workspace; per batch size, all layers together.
_GRAPH_BASE_BYTES = 64 * 2**20
_LARGEST_GRAPH = 512


def activation_bytes(shape: Shape, settings: Settings, *, pooling: bool) -> int:
    """The larger of the feed-forward block of a full batch of tokens, `T * (2I/TP + 4H) * 2 B`, and the
    logits of `max_num_seqs` sequences, `R * V/TP * 4 B * 3`. May be off by half."""
    tokens = settings.max_num_batched_tokens
    wide = shape.intermediate
    if shape.experts:
        wide = max(shape.expert_intermediate * max(1, shape.experts_per_token), shape.expert_intermediate)
    per_token = (2 * wide // settings.tensor_parallel + 4 * shape.hidden) * _HALF
    logits = 0 if pooling else settings.max_num_seqs * shape.vocabulary * _FLOAT * _LOGITS_COPIES
    return max(tokens * per_token, logits // settings.tensor_parallel)


def graph_bytes(shape: Shape, settings: Settings) -> int:
    """0 with `enforce_eager` and on a CPU. Batches of up to twice `max_num_seqs`, at most 512, are captured
    (`_set_cudagraph_sizes`, vllm/config/vllm.py); each layer keeps a few hidden states of the largest, and
    graphs of smaller batches share its pool."""
    if settings.enforce_eager or shape.encoder_only:
        return 0
    batch = min(2 * settings.max_num_seqs, _LARGEST_GRAPH)
    return _GRAPH_BASE_BYTES + batch * len(shape.layers) * 2 * shape.hidden * _HALF


# ---------------------------------------------------------------------- what is not counted

# Flags whose effect on memory is not counted, and that effect.
_NOT_COUNTED = {
    "speculative_config": "the draft model and its KV cache",
    "enable_lora": "LoRA adapters",
    "cpu_offload_gb": "weights kept on the host",
    "cpu_offload_params": "weights kept on the host",
    "offload_group_size": "weights kept on the host",
    "kv_transfer_config": "a KV connector's buffers",
    "pipeline_parallel_size": "layers on other GPUs",
    "enable_expert_parallel": "experts on other GPUs",
    "decode_context_parallel_size": "a KV cache divided among GPUs",
    "num_gpu_blocks_override": "a KV cache of a fixed number of blocks",
    "kv_cache_dtype_skip_layers": "layers whose KV cache keeps its type",
    "quantization_config": "layers with a quantisation of their own",
    "hf_config_path": "another configuration of the model",
}
_NEUTRAL = (None, False, 0, 1, "", "0", "1")


def caveats(files: ModelFiles, shape: Shape, settings: Settings, args: Mapping[str, Any]) -> Iterator[str]:
    """What the figures leave out, each a sentence without a full stop."""
    if not is_verified(shape.model_type):
        yield f"counted as plain attention; not verified for `{shape.model_type or 'a model without a type'}`"
    # vLLM goes by the checkpoint; the flag counts only where the checkpoint names no method.
    named = shape.quantization or settings.quantization or ""
    if named in REFUSED:
        yield REFUSED[named]
    elif shape.quantization is None and named in REMARKS:
        yield REMARKS[named]
    if files.missing:
        yield f"weights file {' and '.join(files.missing[:3])} is missing: download the model again"
    if not files.tensors and (method := unknown_method(shape.quantization_config)):
        yield f"without its files, a model quantised with `{method}` is counted as unquantised"
    for name, what in _NOT_COUNTED.items():
        value = args.get(name)
        if value is True or value not in _NEUTRAL:
            yield f"not counted: {what} ({name})"
