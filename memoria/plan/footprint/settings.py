"""The engine settings that decide its memory, with vLLM's own defaults filled in.

Defaults: `get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args` in
vllm/engine/arg_utils.py, `_get_and_verify_max_len` in vllm/config/model.py (0.32).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from memoria.plan.checkpoint import mapping
from memoria.plan.footprint import kv_dtype
from memoria.plan.footprint.shape import Shape
from memoria.plan.footprint.vision import is_left_out

_DTYPE_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
_WITHOUT_LENGTH = 2048
# Rotary scalings whose `max_position_embeddings` already counts the factor, or that have none.
_SCALED_ALREADY = frozenset(
    {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope"}
)
# The release whose source this planner follows, where none is known.
NEWEST = (0, 32)
HOPPER = ("H100", "H200", "H800", "H20", "GH200")
_BLACKWELL = ("B100", "B200", "B300")


@dataclass(frozen=True, slots=True)
class Settings:
    """`longest` is the longest context that vLLM accepts for this model, in tokens; None: no limit.
    `fits_length` is `max_model_len: auto`: `max_model_len` is then the model's own until the memory is known.
    `kv_dtype` is resolved, never `auto`. `quantization` is the flag's, else the checkpoint's, with
    underscores. `v2_runner`: the model runner of that name; `charges_graphs`: graphs are taken off the KV
    cache. `max_loras` is 0 without LoRA, `draft_tokens` without speculative decoding."""

    max_model_len: int
    longest: int | None
    fits_length: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype_bytes: int
    kv_dtype: str
    state_dtype: str
    convolution_dtype: str
    block_size: int
    tensor_parallel: int
    enforce_eager: bool
    async_scheduling: bool
    hybrid: bool
    prefix_caching: bool
    quantization: str | None
    on_cpu: bool
    vllm: tuple[int, int]
    v2_runner: bool
    flashinfer_sampler: bool
    charges_graphs: bool
    text_only: bool
    largest_graph: int | None
    graph_sizes: tuple[int, ...]
    max_loras: int
    max_lora_rank: int
    draft_tokens: int
    draft_method: str
    profiles_images: bool
    expert_tiles: tuple[int, int]

    @property
    def model_dtype(self) -> str:
        return "float32" if self.dtype_bytes == 4 else "bfloat16"

    @property
    def drafts_itself(self) -> bool:
        """Multi-token prediction: layers of the checkpoint that are else left out."""
        return self.draft_method.endswith("mtp")

    @property
    def decode_tokens(self) -> int:
        """Of one request in one step."""
        return 1 + self.draft_tokens

    @property
    def least_blocks(self) -> int:
        """A block for each sequence: graphs of whole decode steps need a state for each, and 0.32 refuses
        fewer (`resolve_cudagraph_mode_and_sizes`, vllm/config/compilation.py)."""
        return 0 if self.enforce_eager or self.vllm < (0, 32) else self.max_num_seqs

    @property
    def in_flight(self) -> int:
        """Until 0.25 a window kept one batch, although two were scheduled."""
        batches = 2 if self.async_scheduling and self.vllm >= (0, 26) else 1
        return self.max_num_batched_tokens * batches


@dataclass(frozen=True, slots=True)
class Machine:
    """The device facts that decide vLLM's defaults."""

    total_bytes: int
    name: str
    on_cpu: bool = False
    vllm: tuple[int, int] = NEWEST

    @property
    def is_unified(self) -> bool:
        """Whether GPU and host share one memory (Grace Blackwell desktops, Jetson)."""
        return any(name in self.name for name in ("GB10", "Thor", "Orin"))


def read_settings(
    args: Mapping[str, Any],
    shape: Shape,
    machine: Machine,
    *,
    pooling: bool,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """`args` are the engine's flags by vLLM's names (`EngineConfig.vllm_args`); `environ` is the engine's own
    environment. Raises `UnknownModelError` for a KV cache of an unknown type."""
    env = environ or {}
    wanted_length = args.get("max_model_len")
    fits = str(wanted_length) in ("auto", "-1")
    default, longest = lengths(shape, pooling=pooling)
    length = default if wanted_length is None or fits else _whole(wanted_length, default)
    tensor_parallel = _whole(args.get("tensor_parallel_size"), 1)
    seqs, tokens = _batches(args, machine, tensor_parallel, length, chunked=not shape.encoder_only)
    # `auto` loads float32 checkpoints in half precision too (`_resolve_auto_dtype`, vllm/config/model.py)
    dtype_bytes = _DTYPE_BYTES.get(str(args.get("dtype", "auto")), 2)
    generated = not pooling
    speculation = read_speculation(args)
    v2 = _is_v2(machine.vllm, shape, env, pooling=pooling)
    return Settings(
        max_model_len=length,
        longest=None if _is_on(env, "VLLM_ALLOW_LONG_MAX_MODEL_LEN") else longest,
        fits_length=fits,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        dtype_bytes=dtype_bytes,
        kv_dtype=kv_dtype.resolve(
            str(args.get("kv_cache_dtype", "auto")), dtype_bytes, shape.quantization_config
        ),
        state_dtype=str(args.get("mamba_ssm_cache_dtype", "auto")),
        convolution_dtype=str(args.get("mamba_cache_dtype", "auto")),
        block_size=_block_size(args, shape, machine),
        tensor_parallel=tensor_parallel,
        enforce_eager=bool(args.get("enforce_eager")) or machine.on_cpu,
        async_scheduling=not machine.on_cpu and generated and args.get("async_scheduling") is not False,
        hybrid=_is_hybrid(args, shape, env),
        prefix_caching=_caches_prefixes(args, shape, pooling=pooling),
        quantization=_method(args.get("quantization")) or shape.quantization,
        on_cpu=machine.on_cpu,
        vllm=machine.vllm,
        v2_runner=v2,
        flashinfer_sampler=_is_on(env, "VLLM_USE_FLASHINFER_SAMPLER"),
        expert_tiles=_expert_tiles(machine),
        text_only=is_left_out(args),
        largest_graph=human_int(args.get("max_cudagraph_capture_size")),
        graph_sizes=_sizes(args.get("cudagraph_capture_sizes")),
        max_loras=_whole(args.get("max_loras"), 1) if args.get("enable_lora") else 0,
        max_lora_rank=_whole(args.get("max_lora_rank"), 16),
        draft_tokens=_whole(speculation.get("num_speculative_tokens"), 1) if speculation else 0,
        draft_method=draft_method(speculation),
        profiles_images=not args.get("skip_mm_profiling"),
        charges_graphs=machine.vllm >= ((0, 30) if v2 else (0, 21)),
    )


def read_speculation(args: Mapping[str, Any]) -> Mapping[str, Any]:
    """`speculative_config`, which may be written as JSON; empty without one."""
    found = args.get("speculative_config")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return {}
    return mapping(found)


def draft_method(speculation: Mapping[str, Any]) -> str:
    """Where none is named vLLM goes by the draft's name, and takes it for a model of its own last
    (`SpeculativeConfig.__post_init__`, vllm/config/speculative.py)."""
    model = str(speculation.get("model") or "").lower()
    named = str(speculation.get("method") or "")
    if named or not model:
        return named or ("mtp" if speculation else "")
    return next((name for name in ("eagle3", "eagle", "medusa") if name in model), "draft_model")


def needs_draft(method: str) -> bool:
    """Whether tokens are proposed by a model of its own, not by text or by the model's own layers."""
    return bool(method) and not method.startswith(("ngram", "suffix")) and not method.endswith("mtp")


def lengths(shape: Shape, *, pooling: bool) -> tuple[int, int | None]:
    """vLLM's default length, and the longest that it accepts (None: no limit). sentence-transformers' limit
    takes precedence; a tokenizer's counts only for pooling with absolute positions."""
    if shape.encoder_length is not None:
        return shape.encoder_length, shape.encoder_length
    longest = shape.positions
    if pooling and shape.config.get("position_embedding_type") == "absolute" and shape.tokenizer_length:
        longest = min(longest or shape.tokenizer_length, shape.tokenizer_length)
    if longest is None:
        return _WITHOUT_LENGTH, None
    if shape.rope_type and shape.rope_type not in _SCALED_ALREADY and "gemma3" not in shape.model_type:
        longest = int(longest * Decimal(str(shape.rope_factor)))
    if shape.rope_type == "longrope" and shape.original_positions:
        return shape.original_positions, longest
    return longest, longest


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "0").strip().lower() in ("1", "true")


def _is_v2(version: tuple[int, int], shape: Shape, environ: Mapping[str, str], *, pooling: bool) -> bool:
    """Whether the V2 model runner is used (`use_v2_model_runner`, vllm/config/vllm.py): from 0.22 on for
    dense Qwen3, from 0.26 for dense text models, from 0.28 for all without states, from 0.32 for all."""
    if "VLLM_USE_V2_MODEL_RUNNER" in environ:
        return _is_on(environ, "VLLM_USE_V2_MODEL_RUNNER")
    if version >= (0, 32) or pooling or "state" in shape.layers:
        return version >= (0, 32)
    if shape.experts or shape.multimodal:
        return version >= (0, 28)
    return version >= (0, 26) or (version >= (0, 22) and shape.model_type == "qwen3")


def _expert_tiles(machine: Machine) -> tuple[int, int]:
    """Multiples of the intermediate and the hidden size that kernels for MXFP4 need: Triton's layout on
    Hopper, Marlin elsewhere."""
    if machine.on_cpu:
        return 32, 32
    return (256, 64) if any(name in machine.name for name in HOPPER) else (128, 256)


def _is_hybrid(args: Mapping[str, Any], shape: Shape, environ: Mapping[str, str]) -> bool:
    """Whether windows and chunks free their blocks. For chunks vLLM disables this by default
    (vllm/config/vllm.py: a latency regression)."""
    if (disabled := args.get("disable_hybrid_kv_cache_manager")) is not None:
        return not disabled
    return shape.chunk is None or _is_on(environ, "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE")


def _caches_prefixes(args: Mapping[str, Any], shape: Shape, *, pooling: bool) -> bool:
    """`is_prefix_caching_supported`, vllm/config/model.py. Matters only for models with states."""
    if args.get("enable_prefix_caching") is False or shape.encoder_only:
        return False
    with_states = "state" in shape.layers or shape.model_type == "falcon_h1"
    return not (with_states and pooling) and set(shape.layers) != {"state"}


def _batches(
    args: Mapping[str, Any], machine: Machine, world: int, length: int, *, chunked: bool
) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens`."""
    seqs, tokens = batch_defaults(args, machine, world)
    if args.get("max_num_batched_tokens") is None:
        tokens = min(tokens if chunked else max(tokens, length), seqs * length)
    if args.get("max_num_seqs") is None:
        seqs = min(seqs, tokens)
    return seqs, tokens


def batch_defaults(args: Mapping[str, Any], machine: Machine, world: int = 1) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens`, before the model's length limits them."""
    seqs, tokens = _machine_batches(machine, world)
    return _whole(args.get("max_num_seqs"), seqs), _whole(args.get("max_num_batched_tokens"), tokens)


def _machine_batches(machine: Machine, world: int) -> tuple[int, int]:
    gib = 2**30
    if machine.is_unified:
        # NVML gives no total here, and vLLM then takes the small ones
        return 256, 2048
    if machine.on_cpu:
        return 128 * world, 2048 * world
    if machine.total_bytes >= 160 * gib:
        return 1024, 16384
    if machine.total_bytes >= 70 * gib and "a100" not in machine.name.lower():
        return 1024, 8192
    return 256, 2048


def _block_size(args: Mapping[str, Any], shape: Shape, machine: Machine) -> int:
    """In tokens. On a CPU 128; for MLA always 16 (`check_and_update_config`, vllm/platforms/cpu.py; with AMX
    128 there too). On a GPU 16 where the backend supports that: all but sparse MLA (64) and FlashInfer's MLA,
    the first choice on Blackwell (32: `_get_backend_priorities`, vllm/platforms/cuda.py)."""
    if machine.on_cpu:
        return 16 if shape.mla_rank is not None else _whole(args.get("block_size"), 128)
    default = 16
    if shape.is_sparse:
        default = 64
    elif shape.mla_rank is not None and any(name in machine.name for name in _BLACKWELL):
        default = 32
    return _whole(args.get("block_size"), default)


def _whole(value: Any, otherwise: int) -> int:
    found = human_int(value)
    return otherwise if found is None else max(1, found)


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in value) if isinstance(value, list) else ()


def _method(value: Any) -> str | None:
    """In the spelling of `method_of`."""
    return str(value).lower().replace("-", "_") if value else None


_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])?")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def version_of(text: str | None) -> tuple[int, int]:
    """Of vLLM, from its text; `NEWEST` where that says none."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text or "")
    return (int(match[1]), int(match[2])) if match else NEWEST


def human_int(value: Any) -> int | None:
    """A whole number as vLLM's flags accept it (`human_readable_int`, vllm/utils/argparse_utils.py): `25g` is
    25e9, `25G` is 25 * 2^30. None for None, and for what vLLM refuses."""
    match = _NUMBER.fullmatch("" if value is None else str(value).strip())
    if not match:
        return None
    number, decimal_suffix, whole, binary_suffix = match.groups()
    if decimal_suffix:
        return int(float(number) * _DECIMAL[decimal_suffix])
    return int(whole) * (_BINARY[binary_suffix] if binary_suffix else 1)
