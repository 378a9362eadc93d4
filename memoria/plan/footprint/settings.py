"""The settings of an engine that decide its memory, with vLLM's own defaults filled in.

Defaults: `get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args` in
vllm/engine/arg_utils.py, `_get_and_verify_max_len` in vllm/config/model.py (0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from memoria.plan.footprint.shape import Shape

# By the beginning of the name, bytes of an element of the KV cache (vllm/config/cache.py, `CacheDType`).
_KV_BYTES = {
    "fp8": 1,
    "float8": 1,
    "int8": 1,
    "half": 2,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float": 4,
}
_DTYPE_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
_WITHOUT_LENGTH = 2048
# Rotary scalings whose `max_position_embeddings` already counts the factor, or that have none.
_SCALED_ALREADY = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"}
)


@dataclass(frozen=True, slots=True)
class Settings:
    """`longest` is the model's own limit in tokens; `fits_length` is `max_model_len: auto`, where the length
    planned with is that limit until the memory is known."""

    max_model_len: int
    longest: int
    fits_length: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype_bytes: int
    kv_bytes: int
    block_size: int
    tensor_parallel: int
    enforce_eager: bool
    async_scheduling: bool
    hybrid: bool
    prefix_caching: bool
    quantization: str | None
    on_cpu: bool

    @property
    def in_flight(self) -> int:
        return self.max_num_batched_tokens * (2 if self.async_scheduling else 1)


@dataclass(frozen=True, slots=True)
class Machine:
    """What of the device decides vLLM's defaults."""

    total_bytes: int
    name: str
    on_cpu: bool = False


def read_settings(args: Mapping[str, Any], shape: Shape, machine: Machine, *, pooling: bool) -> Settings:
    """`args` are the engine's flags by vLLM's names, as `EngineConfig.vllm_args` holds them."""
    wanted_length = args.get("max_model_len")
    fits = str(wanted_length) in ("auto", "-1")
    longest = longest_context(shape)
    length = longest if wanted_length is None or fits else _whole(wanted_length, longest)
    tensor_parallel = _whole(args.get("tensor_parallel_size"), 1)
    seqs, tokens = _batches(args, machine, tensor_parallel, length, chunked=not shape.encoder_only)
    dtype_bytes = _DTYPE_BYTES.get(str(args.get("dtype", "auto")), 0) or _load_bytes(shape)
    kv_dtype = str(args.get("kv_cache_dtype", "auto"))
    kv_bytes = next((size for name, size in _KV_BYTES.items() if kv_dtype.startswith(name)), dtype_bytes)
    generated = not pooling
    return Settings(
        max_model_len=length,
        longest=longest,
        fits_length=fits,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        dtype_bytes=dtype_bytes,
        kv_bytes=kv_bytes,
        block_size=_block_size(args, shape, machine),
        tensor_parallel=tensor_parallel,
        enforce_eager=bool(args.get("enforce_eager")) or machine.on_cpu,
        async_scheduling=not machine.on_cpu and generated and args.get("async_scheduling") is not False,
        hybrid=not args.get("disable_hybrid_kv_cache_manager"),
        prefix_caching=args.get("enable_prefix_caching") is not False and not shape.encoder_only,
        quantization=_text(args.get("quantization")) or shape.quantization,
        on_cpu=machine.on_cpu,
    )


def longest_context(shape: Shape) -> int:
    """The model's own limit. sentence-transformers' limit counts before all others."""
    if shape.encoder_length is not None:
        return shape.encoder_length
    length = shape.positions
    if shape.tokenizer_length is not None:
        length = min(length or shape.tokenizer_length, shape.tokenizer_length)
    if length is None:
        return _WITHOUT_LENGTH
    if shape.rope_type == "longrope" and shape.original_positions:
        return shape.original_positions
    if shape.rope_type and shape.rope_type not in _SCALED_ALREADY and "gemma3" not in shape.model_type:
        length = int(length * Decimal(str(shape.rope_factor)))
    return length


def _batches(
    args: Mapping[str, Any], machine: Machine, world: int, length: int, *, chunked: bool
) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens`."""
    seqs, tokens = _batch_defaults(machine, world)
    if args.get("max_num_seqs") is not None:
        seqs = _whole(args["max_num_seqs"], seqs)
    if args.get("max_num_batched_tokens") is not None:
        tokens = _whole(args["max_num_batched_tokens"], tokens)
    else:
        tokens = min(tokens if chunked else max(tokens, length), seqs * length)
    if args.get("max_num_seqs") is None:
        seqs = min(seqs, tokens)
    return seqs, tokens


def _batch_defaults(machine: Machine, world: int) -> tuple[int, int]:
    gib = 2**30
    if machine.on_cpu:
        return 128 * world, 2048 * world
    if machine.total_bytes >= 160 * gib:
        return 1024, 16384
    if machine.total_bytes >= 70 * gib and "a100" not in machine.name.lower():
        return 1024, 8192
    return 256, 2048


def _block_size(args: Mapping[str, Any], shape: Shape, machine: Machine) -> int:
    """Tokens. On a CPU 128, for MLA 16 (`check_and_update_config`, vllm/platforms/cpu.py); on a GPU 16, and
    64 for MLA (FlashMLA and its kin; a larger one of another backend moves the cache by less than a block
    per request)."""
    if shape.mla_rank is not None:
        return 16 if machine.on_cpu else 64
    return _whole(args.get("block_size"), 128 if machine.on_cpu else 16)


def _load_bytes(shape: Shape) -> int:
    """`dtype: auto` loads float32 checkpoints in half precision (`_resolve_auto_dtype`,
    vllm/config/model.py)."""
    return 2


def _whole(value: Any, otherwise: int) -> int:
    try:
        return max(1, int(str(value)))
    except ValueError:
        return otherwise


def _text(value: Any) -> str | None:
    return str(value) if value else None
