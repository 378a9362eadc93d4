"""Facts per model type: whether its layers were compared with vLLM's, the defaults that config.json may omit,
which layer keeps what, and the types that cannot be planned.

Sources: the configuration classes of transformers 5 for defaults, the models of vLLM 0.32
(vllm/model_executor/models, vllm/models) for what their layers keep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal


class UnknownModelError(ValueError):
    """A model that the planner does not support; the message is for the user."""


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Layouts compared with the log of real vLLM (tests/data/kv_cache.json), or (READ) with its source where it
# needs a GPU. Any other type is counted as plain attention, with a caveat.
MEASURED = _types(
    """
    bert cohere2 deepseek_v2 exaone4 falcon_h1 gemma2 gemma3_text gemma3n_text gemma4_text gpt_oss
    granitemoehybrid jamba lfm2 llama llama4_text mamba mamba2 mistral mixtral modernbert nemotron_h phi3
    qwen2 qwen3 qwen3_next
    """
)
READ = _types(
    """
    apertus arcee bloom cohere deepseek_v3 deepseek_v32 ernie4_5 ernie4_5_moe exaone falcon falcon_mamba
    gemma gemma3 glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neox granite granitemoe
    gte internlm2 kimi_k2 kimi_linear lfm2_moe ministral mistral3 nemotron new nomic_bert olmo olmo2 olmo3
    olmoe opt phi phimoe qwen2_5_vl qwen2_5_vl_text qwen2_moe qwen2_vl qwen2_vl_text qwen3_5_moe_text
    qwen3_5_text qwen3_moe qwen3_vl_moe_text qwen3_vl_text roberta seed_oss smollm3 stablelm starcoder2
    xlm-roberta
    """
)
# Caches of a kind of their own (vllm/models).
_OWN_CACHES = re.compile(
    r"deepseek_v4|deepseek_v41|dots3_note|glm5_next|hy_v4|inkling|k3_dspark|kimi_k3|minimax|qwen4_exp|step3p"
    r"|bailing_hybrid|longcat|zamba|plamo|bamba|rwkv|recurrent_gemma|xlstm|zaya|olmo_hybrid|mimo_v2"
)
_ENCODER_DECODERS = re.compile(
    r"(?:whisper|t5|mt5|umt5|t5gemma2?|bart|mbart|cohere_asr|canary|florence2|m2m_100|marian|pegasus|nemotron_parse)$"
)
# Keys that show that layers keep a state: an unknown type must not be counted without it.
_STATE_KEYS = re.compile(
    r"(?:linear_(?!bias)|mamba_|ssm_|kda_|lru_|rwkv|gated_delta|lightning_|short_conv)|state_size$|attn_type_list$"
)
STATEFUL = _types(
    """
    falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 nemotron_h
    qwen3_5_moe_text qwen3_5_text qwen3_next
    """
)

# Model types whose attention is bidirectional: prefill only, no KV cache.
ENCODERS = _types(
    """
    bert camembert distilbert gte modernbert mpnet new nomic_bert roberta xlm-roberta
    """
)
# `is_causal` is set to False for these (vllm/model_executor/models/config.py).
_BIDIRECTIONAL = _types(
    """
    LlamaBidirectionalForSequenceClassification LlamaBidirectionalModel
    LlamaNemotronVLForSequenceClassification LlamaNemotronVLModel VoyageQwen3BidirectionalEmbedModel
    """
)
# `is_deepseek_mla` (vllm/transformers_utils/model_arch_config_convertor.py).
MLA = _types(
    """
    axk1 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_k2 kimi_linear pangu_ultra_moe
    """
)
# vLLM gives these a separate output head, whatever the file says.
_OWN_HEAD = _types(
    """
    deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss jamba kimi_k2 nemotron_h
    olmoe qwen3_next
    """
)
# The output head is the embedding unless the file says otherwise.
_TIED = _types(
    """
    bloom cohere cohere2 ernie4_5 ernie4_5_moe falcon falcon_mamba gpt2 gpt_bigcode lfm2 lfm2_moe mamba mpt
    opt smollm3 starcoder2
    """
)

_GEMMA3 = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
_GEMMA3 |= {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "vocab_size": 262208}
_GEMMA3 |= {"max_position_embeddings": 131072}
_GEMMA3N = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35, "head_dim": 256}
_GEMMA3N |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 262400, "sliding_window": 512}
_GEMMA3N |= {
    "max_position_embeddings": 32768,
    "num_kv_shared_layers": 15,
    "vocab_size_per_layer_input": 262144,
}
_GEMMA3N |= {"hidden_size_per_layer_input": 256}
_GEMMA4 = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "head_dim": 256}
_GEMMA4 |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262144, "sliding_window": 512}
_GEMMA4 |= {"max_position_embeddings": 131072, "global_head_dim": 512, "vocab_size_per_layer_input": 262144}
_GEMMA4 |= {"hidden_size_per_layer_input": 256}
_GATED_DELTA = {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128}
_GATED_DELTA |= {"linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "head_dim": 256}
_LLAMA4 = {"head_dim": 128, "num_key_value_heads": 8, "attention_chunk_size": 8192}
_LLAMA4 |= {"num_local_experts": 16, "num_experts_per_tok": 1}
_MAMBA = {"state_size": 16, "conv_kernel": 4, "expand": 2}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {"sliding_window": 4096},
    "falcon": {"multi_query": True},
    "falcon_mamba": _MAMBA,
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gpt_bigcode": {"multi_query": True},
    "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    "lfm2": {"num_key_value_heads": 8, "conv_L_cache": 3},
    "lfm2_moe": {"num_key_value_heads": 8, "conv_L_cache": 3},
    "llama4_text": _LLAMA4,
    "mamba": _MAMBA,
    "mamba2": {
        **{"num_heads": 128, "head_dim": 64, "n_groups": 8, "state_size": 128},
        **{"conv_kernel": 4, "expand": 2},
    },
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "olmo3": {"sliding_window": 4096},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
    "qwen3_5_text": _GATED_DELTA,
    "qwen3_5_moe_text": _GATED_DELTA,
    "qwen3_next": _GATED_DELTA,
}


def check_type(model_type: str, whole: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """`whole` is config.json, `text` its part for the text model. Raises `UnknownModelError` for a model
    whose caches the planner does not support, rather than count it as something else."""
    if whole.get("is_encoder_decoder") is True or _ENCODER_DECODERS.match(model_type):
        raise UnknownModelError(f"`{model_type}` is an encoder-decoder, which this planner does not support")
    if _OWN_CACHES.match(model_type):
        raise UnknownModelError(f"this planner does not support the caches of `{model_type}`")
    if model_type in STATEFUL:
        return
    unknown = sorted(key for key, value in text.items() if value and _STATE_KEYS.match(key))
    if unknown:
        raise UnknownModelError(
            f"`{model_type or 'this model'}` keeps states ({unknown[0]} in config.json), "
            "which this planner does not support"
        )


def is_verified(model_type: str) -> bool:
    return model_type in MEASURED or model_type in READ


def is_bidirectional(model_type: str, whole: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether no layer caches anything (`EncoderOnlyAttention`)."""
    named = set(whole.get("architectures") or ())
    embeds = "Gemma3TextModel" in named and bool(text.get("use_bidirectional_attention"))
    jina = "JinaEmbeddingsV5Model" in named and text.get("is_decoder") is False
    declared = whole.get("is_causal") is False or text.get("is_causal") is False
    return model_type in ENCODERS or bool(named & _BIDIRECTIONAL) or embeds or jina or declared


def is_tied(model_type: str, written: bool | None) -> bool:
    """Whether the output head is the embedding, by the file (`written`), else by transformers' default."""
    if model_type in _OWN_HEAD:
        return False
    return written if written is not None else model_type.startswith("gemma") or model_type in _TIED


# ---------------------------------------------------------------------- what each layer keeps

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
# NemotronH's pattern, one letter per layer.
_LETTERS: Mapping[str, LayerKind] = {"*": "full", "M": "state", "-": "none", "E": "none"}
_STATES_ALONE = frozenset({"falcon_mamba", "mamba", "mamba2"})


def layer_kinds(model_type: str, config: Mapping[str, Any], count: int) -> tuple[LayerKind, ...]:
    """What each of `count` layers keeps, or of as many as a pattern names. Raises `UnknownModelError` for a
    layer of an unsupported kind."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return tuple(_LETTERS.get(letter, "none") for letter in pattern)
    named = config.get("layer_types") or config.get("layers_block_type")
    if model_type in _STATES_ALONE:
        states: tuple[LayerKind, ...] = ("state",)
        kinds = states * count
    elif model_type == "gpt_oss":  # vLLM ignores the file here (gpt_oss.py)
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
        raise UnknownModelError(f"this planner does not support layers of the kind `{name}`")
    return _NAMED[name]


def _with_shared(config: Mapping[str, Any], kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The last `num_kv_shared_layers` use the caches of earlier layers (gemma3n.py, gemma4.py)."""
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
    """All but every n-th layer slide."""
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
    # Their attention takes one window for all layers, never one per layer.
    "qwen2_moe": lambda config, number: False,
    "qwen3_moe": lambda config, number: True,
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
