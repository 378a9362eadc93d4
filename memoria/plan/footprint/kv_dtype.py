"""Bytes of keys and values, by the cache's type.

Types: `CacheDType` in vllm/config/cache.py. What a backend packs into a slot: its `customize_spec` (0.32:
flashinfer.py, triton_attn.py, turboquant_attn.py in vllm/v1/attention/backends).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memoria.plan.footprint.kv_cache import ceil_div
from memoria.plan.footprint.model_types import UnknownModelError

_PLAIN = {
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8"), 1),
    **dict.fromkeys(("half", "float16", "bfloat16"), 2),
    **dict.fromkeys(("float", "float32"), 4),
}
_SCALE_BYTES = 4  # float32, one for a head's key and one for its value
# Bits of a key and of a value (vllm/model_executor/layers/quantization/turboquant/config.py).
_TURBOQUANT = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
_TURBOQUANT_BOUNDARY = 2  # layers at each end that stay as wide as the model
# FlashMLA's packing of a latent, its rotary part and its scales (mla_attention.py).
_PACKED_MLA = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}


def resolve(wanted: str, dtype_bytes: int, quantization: Mapping[str, Any]) -> str:
    """`wanted`, with `auto` replaced by the checkpoint's type, else by the model's own
    (`resolve_kv_cache_dtype_string` in vllm/utils/torch_utils.py, and `Attention.__init__`). Raises
    `UnknownModelError` for a type that the planner does not support."""
    if wanted == "auto":
        wanted = _of_checkpoint(quantization) or {2: "bfloat16", 4: "float32"}[dtype_bytes]
    known = _PLAIN.keys() | _TURBOQUANT.keys() | _PACKED_MLA.keys()
    if wanted in known or wanted.startswith("nvfp4") or wanted.endswith("_per_token_head"):
        return wanted
    raise UnknownModelError(f"this planner does not support a KV cache of the type `{wanted}`")


def slot_bytes(kv_dtype: str, key_size: int, value_size: int) -> int:
    """One token in one head: key and value, with their scales."""
    if kv_dtype in _PLAIN:
        return (key_size + value_size) * _PLAIN[kv_dtype]
    if kv_dtype.startswith("nvfp4"):
        return sum(size // 2 + size // 16 for size in (key_size, value_size))
    if kv_dtype.endswith("_per_token_head"):
        halves = 2 if kv_dtype.startswith("int4") else 1
        return key_size // halves + value_size // halves + 2 * _SCALE_BYTES
    if kv_dtype in _TURBOQUANT:
        key_bits, value_bits = _TURBOQUANT[kv_dtype]
        key = key_size if key_bits == 8 else ceil_div(key_size * key_bits, 8) + 2
        slot = key + ceil_div(key_size * value_bits, 8) + 4
        return slot + slot % 2
    raise UnknownModelError(f"`kv_cache_dtype: {kv_dtype}` is for MLA only")


def latent_bytes(kv_dtype: str, size: int, *, sparse: bool) -> int:
    """One token in one layer of MLA. Sparse attention packs fp8 differently
    (`_canonicalize_sparse_mla_kv_cache_dtype`)."""
    if kv_dtype in _PACKED_MLA:
        return _PACKED_MLA[kv_dtype]
    if sparse and kv_dtype.startswith("fp8"):
        return _PACKED_MLA["fp8_ds_mla"]
    if kv_dtype not in _PLAIN:
        raise UnknownModelError(f"`kv_cache_dtype: {kv_dtype}` is not known for MLA")
    return size * _PLAIN[kv_dtype]


def is_wide(kv_dtype: str) -> bool:
    """Whether fp8 would be smaller."""
    return _PLAIN.get(kv_dtype, 1) > 1


def unquantised_layers(kv_dtype: str, layers: int, *, hybrid: bool) -> frozenset[int]:
    """Layers that keep the model's own type (`TurboQuantConfig.get_boundary_skip_layers`)."""
    if kv_dtype not in _TURBOQUANT or hybrid:
        return frozenset()
    ends = min(_TURBOQUANT_BOUNDARY, layers // 2)
    return frozenset((*range(ends), *range(layers - ends, layers)))


def _of_checkpoint(quantization: Mapping[str, Any]) -> str | None:
    method = str(quantization.get("quant_method") or "")
    if not method.startswith("modelopt"):
        compressed = method.replace("_", "-") == "compressed-tensors"
        return "fp8" if compressed and quantization.get("kv_cache_scheme") else None
    inner = quantization.get("quantization")
    places = (inner if isinstance(inner, dict) else quantization, quantization)
    for key in ("kv_cache_scheme", "kv_cache_quant_algo"):
        for place in places:
            if found := place.get(key):
                return _algorithm(found)
    return None


def _algorithm(found: Any) -> str | None:
    if isinstance(found, dict):
        if found.get("type") != "float":
            return None
        static_fp8 = found.get("dynamic") is False and found.get("num_bits") == 8
        return "fp8_e4m3" if static_fp8 else {4: "nvfp4"}.get(found.get("num_bits", 0))
    return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(str(found).lower())
