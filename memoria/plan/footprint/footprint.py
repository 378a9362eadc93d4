"""One engine's memory, term by term, and what is not counted.

What an engine reports after a start replaces the estimates in the next plan (`Learned`,
memoria.plan.outcome).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from memoria.plan.checkpoint import SHIPPED, ModelFiles
from memoria.plan.footprint.additions import draft_bytes, lora_bytes
from memoria.plan.footprint.kv_cache import Attention, Demand, KvCache, ceil_div, is_full, lay_out
from memoria.plan.footprint.layers import kv_layers
from memoria.plan.footprint.model_types import UnknownModelError, is_verified
from memoria.plan.footprint.peaks import Peaks, find_peaks
from memoria.plan.footprint.quantization import REFUSED, REMARKS, unknown_method
from memoria.plan.footprint.settings import Machine, Settings, needs_draft, read_settings
from memoria.plan.footprint.shape import Shape, read_shape
from memoria.plan.footprint.vision import Encoder, read_encoder
from memoria.plan.footprint.weights import Weights, scaled, tensors_from_shape, weigh


@dataclass(frozen=True, slots=True)
class Footprint:
    """One GPU's share. `peaks` are estimates, the rest is exact except for what `caveats` list."""

    shape: Shape
    settings: Settings
    weights: Weights
    peaks: Peaks
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
        encoder = read_encoder(files.config, shape.hidden, args)
        weights = weights or _weighed(files, shape, settings, encoder, pooling=pooling)
        drafted = kv_layers(read_shape(files.draft), settings) if files.draft else []
        kv_cache = lay_out(
            kv_layers(shape, settings) + drafted,
            Demand(settings.max_model_len, settings.in_flight),
            hybrid=settings.hybrid,
            least_blocks=settings.least_blocks,
        )
        peaks = find_peaks(shape, settings, encoder, machine.name, pooling=pooling)
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
        peaks,
        kv_cache,
        tuple(caveats(files, shape, settings, encoder, args)),
    )


def _weighed(
    files: ModelFiles, shape: Shape, settings: Settings, encoder: Encoder | None, *, pooling: bool
) -> Weights:
    stored = files.tensors or (*tensors_from_shape(shape), *(encoder.tensors() if encoder else ()))
    weights = weigh(stored, shape, settings, pooling=pooling, exact=bool(files.tensors))
    if not files.tensors and files.index_bytes:
        weights = scaled(weights, stored, files.index_bytes)
    beside = lora_bytes(shape, settings)
    if files.draft:
        beside += draft_bytes(files.draft, settings, settings.draft_method)
    return replace(weights, total_bytes=weights.total_bytes + beside) if beside else weights


# ---------------------------------------------------------------------- what is not counted

# Flags whose effect on memory is not counted, and that effect.
_NOT_COUNTED = {
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


def caveats(
    files: ModelFiles, shape: Shape, settings: Settings, encoder: Encoder | None, args: Mapping[str, Any]
) -> Iterator[str]:
    """What the figures leave out, each a sentence without a full stop."""
    if not is_verified(shape.model_type):
        yield f"counted as plain attention; not verified for `{shape.model_type or 'a model without a type'}`"
    # vLLM goes by the checkpoint; the flag counts only where the checkpoint names no method.
    named = shape.quantization or settings.quantization or ""
    if named in REFUSED:
        yield REFUSED[named]
    elif shape.quantization is None and named in REMARKS:
        yield REMARKS[named]
    if files.source == SHIPPED:
        yield "not in the cache, and the hub did not say: its configuration is the one that memoria knows"
    if files.missing:
        yield f"weights file {' and '.join(files.missing[:3])} is missing: download the model again"
    if not files.tensors and (method := unknown_method(shape.quantization_config)):
        yield f"without its files, a model quantised with `{method}` is counted as unquantised"
    if shape.multimodal and encoder is None and not settings.text_only:
        what = "the step of" if files.tensors else "the weights and the step of"
        yield f"not counted: {what} its encoder of images or audio, which config.json does not describe"
    if settings.draft_tokens and not files.draft and needs_draft(settings.draft_method):
        yield "not counted: the draft model and its KV cache (speculative_config)"
    for name, what in _NOT_COUNTED.items():
        value = args.get(name)
        if value is True or value not in _NEUTRAL:
            yield f"not counted: {what} ({name})"
