"""What a plan leaves out, said beside it: a number that is not known must not look like one that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memoria.plan.checkpoint.model_files import ModelFiles
from memoria.plan.footprint.model_types import is_verified
from memoria.plan.footprint.quantization import REFUSED, REMARKS, unknown_method
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

# Flags that move memory in ways that are not counted here, by what they bring.
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
    """Each a sentence without a full stop."""
    if not is_verified(shape.model_type):
        yield f"counted as plain attention; not verified for `{shape.model_type or 'a model without a type'}`"
    # vLLM goes by the checkpoint; the flag alone decides where that says nothing.
    named = shape.quantization or settings.quantization or ""
    if named in REFUSED:
        yield REFUSED[named]
    elif shape.quantization is None and named in REMARKS:
        yield REMARKS[named]
    if files.missing:
        yield f"weights file {' and '.join(files.missing[:3])} is missing: download the model again"
    if not files.tensors and (method := unknown_method(shape.quantization_config)):
        yield f"without its files a model quantised with `{method}` is counted as if it were not"
    for name, what in _NOT_COUNTED.items():
        value = args.get(name)
        if value is True or value not in _NEUTRAL:
            yield f"not counted: {what} ({name})"
