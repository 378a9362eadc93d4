"""Which layer keeps what of a request: as its file lists it, or as transformers and vLLM fill it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from memoria.plan.footprint.model_types import UnknownModelError

# `shared`: attention over the cache of an earlier layer; `none`: no attention at all.
LayerKind = Literal["full", "sliding", "chunked", "state", "shared", "none"]

_NAMED: Mapping[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "state",
    "mamba": "state",
    "mamba2": "state",
    "conv": "state",
    "moe": "none",
    "mlp": "none",
}
# NemotronH's pattern, a letter a layer.
_LETTERS: Mapping[str, LayerKind] = {"*": "full", "M": "state", "-": "none", "E": "none"}
_STATES_ALONE = frozenset({"falcon_mamba", "mamba", "mamba2"})


def layer_kinds(model_type: str, config: Mapping[str, Any], count: int) -> tuple[LayerKind, ...]:
    """`count` layers, or as many as a pattern names. Raises `UnknownModelError` for one of no known kind."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return tuple(_LETTERS.get(letter, "none") for letter in pattern)
    named = config.get("layer_types") or config.get("layers_block_type")
    if model_type in _STATES_ALONE:
        states: tuple[LayerKind, ...] = ("state",)
        kinds = states * count
    elif model_type == "gpt_oss":  # vLLM does not ask the file (gpt_oss.py)
        halves: tuple[LayerKind, LayerKind] = ("sliding", "full")
        kinds = tuple(halves[number % 2] for number in range(count))
    elif isinstance(named, list):
        kinds = tuple(_kind(str(name)) for name in (named[:count] if count else named))
    else:
        kinds = tuple(_filled_in(model_type, config, number) for number in range(count))
    if model_type == "gemma4_text" and kinds:
        kinds = (*kinds[:-1], "full")
    return _with_shared(config, kinds)


def window(model_type: str, config: Mapping[str, Any]) -> int | None:
    """In tokens. Cohere's counts the token itself (commandr.py)."""
    if model_type.startswith("qwen") and not config.get("use_sliding_window"):
        return None
    size = config.get("sliding_window")
    if not isinstance(size, int) or not size:
        return None
    return size + 1 if model_type in ("cohere2", "cohere2_moe") else size


def _kind(name: str) -> LayerKind:
    if name not in _NAMED:
        raise UnknownModelError(f"layers of the kind `{name}` are not known to this planner")
    return _NAMED[name]


def _with_shared(config: Mapping[str, Any], kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The last `num_kv_shared_layers` use the caches of earlier ones (gemma3n.py, gemma4.py)."""
    first = len(kinds) - int(config.get("num_kv_shared_layers") or 0)
    shared: tuple[LayerKind, ...] = ("shared",)
    return kinds[:first] + shared * (len(kinds) - first) if 0 < first < len(kinds) else kinds


def _filled_in(model_type: str, config: Mapping[str, Any], number: int) -> LayerKind:
    if model_type == "llama4_text":
        return _llama4(config, number)
    if model_type in _KEEPS_STATE:
        return "state" if _KEEPS_STATE[model_type](config, number) else "full"
    return "sliding" if _slides(model_type, config, number) else "full"


def _llama4(config: Mapping[str, Any], number: int) -> LayerKind:
    rotary = config.get("no_rope_layers")
    interval = int(config.get("no_rope_layer_interval") or 4)
    chunked = bool(rotary[number]) if rotary else (number + 1) % interval != 0
    return "chunked" if chunked and config.get("attention_chunk_size") else "full"


_Rule = Callable[[Mapping[str, Any], int], bool]


def _every(default: int) -> _Rule:
    """All but each n-th layer slide."""
    return lambda config, number: (number + 1) % int(config.get("sliding_window_pattern") or default) != 0


def _between_attention(config: Mapping[str, Any], number: int) -> bool:
    return (number + 1) % int(config.get("full_attention_interval") or 4) != 0


def _jamba(config: Mapping[str, Any], number: int) -> bool:
    return number % int(config.get("attn_layer_period", 8)) != int(config.get("attn_layer_offset", 4))


def _lfm2(config: Mapping[str, Any], number: int) -> bool:
    full = config.get("full_attn_idxs")
    return full is not None and number not in full


def _kimi(config: Mapping[str, Any], number: int) -> bool:
    """Its layers are numbered from 1."""
    return number + 1 in ((config.get("linear_attn_config") or {}).get("kda_layers") or ())


_KEEPS_STATE: Mapping[str, _Rule] = {
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _between_attention),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _lfm2),
    "granitemoehybrid": lambda config, number: True,
    "jamba": _jamba,
    "kimi_linear": _kimi,
}
_PATTERNS: Mapping[str, _Rule] = {
    "cohere2": _every(4),
    "exaone4": _every(4),
    "gemma2": lambda config, number: number % 2 == 0,
    "gemma3": _every(6),
    "gemma3_text": _every(6),
    "gemma3n_text": lambda config, number: (number + 1) % 5 != 0,
    "gemma4_text": lambda config, number: (number + 1) % 6 != 0,
    "olmo3": lambda config, number: (number + 1) % 4 != 0,
    "qwen2_moe": lambda config, number: number % 2 == 0 and number < int(config.get("max_window_layers", 28)),
    "smollm3": lambda config, number: False,
}


def _slides(model_type: str, config: Mapping[str, Any], number: int) -> bool:
    if window(model_type, config) is None:
        return False
    if model_type in _PATTERNS:
        return _PATTERNS[model_type](config, number)
    if model_type.startswith("qwen"):
        return number >= int(config.get("max_window_layers", 28))
    # One window for all layers (Mistral, Phi-3): `cache_config.sliding_window`, vllm/engine/arg_utils.py
    return True
