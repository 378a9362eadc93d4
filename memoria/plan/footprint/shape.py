"""A model's config.json as the figures that decide its memory.

Names and their order follow `ModelArchConfigConvertorBase`
(vllm/transformers_utils/model_arch_config_convertor.py); values that a file leaves out are those of the
model's configuration class in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memoria.checkpoint.model_files import ModelFiles

LayerKind = Literal["full", "sliding", "chunked", "state", "none"]

# Model types whose attention is bidirectional: prefill only, no KV cache.
ENCODERS = frozenset(
    {
        "bert",
        "roberta",
        "xlm-roberta",
        "modernbert",
        "nomic_bert",
        "new",
        "gte",
        "distilbert",
        "mpnet",
        "camembert",
    }
)
# `is_deepseek_mla` in the convertor.
_MLA = frozenset(
    {
        *(
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "kimi_k2",
            "kimi_linear",
        ),
        *("longcat_flash", "pangu_ultra_moe"),
    }
)
_GEMMA3 = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
_GEMMA3 |= {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "vocab_size": 262208}
_GEMMA3 |= {"max_position_embeddings": 131072}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256, "sliding_window": 4096},
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
    "qwen3_next": {"head_dim": 256},
}
_LAYER_TYPES: Mapping[str, LayerKind] = {
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
_PATTERN: Mapping[str, LayerKind] = {"*": "full", "M": "state", "-": "none", "E": "none"}


@dataclass(frozen=True, slots=True)
class Shape:
    """`layers` says of each layer what it keeps of a request. `config` is the text model's own part of
    config.json, its omissions filled in."""

    model_type: str
    config: Mapping[str, Any]
    layers: tuple[LayerKind, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    mla_rank: int | None
    rope_size: int
    window: int | None
    chunk: int | None
    experts: int
    experts_per_token: int
    expert_intermediate: int
    quantization: str | None
    stored_dtype: str | None
    positions: int | None
    original_positions: int | None
    rope_type: str
    rope_factor: float
    tied: bool
    tokenizer_length: int | None
    encoder_length: int | None

    @property
    def encoder_only(self) -> bool:
        return self.model_type in ENCODERS


def read_shape(files: ModelFiles) -> Shape:
    """Raises `KeyError` or `ValueError` where the configuration lacks what every transformer's has."""
    text = files.config.get("text_config") or files.config.get("llm_config")
    inner: Mapping[str, Any] = text if isinstance(text, dict) else files.config
    model_type = str(inner.get("model_type") or files.config.get("model_type") or "")
    config = {
        **_DEFAULTS.get(model_type, {}),
        **{k: v for k, v in inner.items() if v is not None or k == "sliding_window"},
    }
    heads = _first(config, ("num_attention_heads", "n_head")) or 0
    hidden = _first(config, ("hidden_size", "n_embd", "d_model")) or 0
    layers = _layers(model_type, config)
    if not hidden or not layers:
        raise ValueError("config.json names neither `hidden_size` nor layers: not a transformer's")
    is_mla = model_type in _MLA and config.get("kv_lora_rank") is not None
    head_size = int(config.get("head_dim") or (hidden // heads if heads else 0))
    rope = _mapping(config.get("rope_parameters") or config.get("rope_scaling"))
    quantization = _mapping(
        files.config.get("quantization_config")
        or inner.get("quantization_config")
        or files.config.get("compression_config")
    )
    return Shape(
        model_type=model_type,
        config=config,
        layers=layers,
        hidden=hidden,
        intermediate=_first(config, ("intermediate_size", "n_inner", "ffn_dim")) or 4 * hidden,
        vocabulary=int(config.get("vocab_size") or 0),
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_size=head_size,
        value_size=int(config.get("v_head_dim") or head_size) if not is_mla else head_size,
        mla_rank=int(config["kv_lora_rank"]) if is_mla else None,
        rope_size=int(config.get("qk_rope_head_dim") or 0),
        window=_window(model_type, config),
        chunk=_optional(config.get("attention_chunk_size")),
        experts=_first(config, ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"))
        or 0,
        experts_per_token=_first(config, ("num_experts_per_tok", "num_experts_per_token", "moe_topk")) or 0,
        expert_intermediate=int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0),
        quantization=str(quantization["quant_method"]).replace("_", "-")
        if quantization.get("quant_method")
        else None,
        stored_dtype=_optional_text(
            files.config.get("dtype")
            or files.config.get("torch_dtype")
            or config.get("dtype")
            or config.get("torch_dtype")
        ),
        positions=_positions(config),
        original_positions=_optional(config.get("original_max_position_embeddings")),
        rope_type=str(rope.get("rope_type") or rope.get("type") or ""),
        rope_factor=float(rope.get("factor") or 1.0),
        tied=bool(
            config.get("tie_word_embeddings", files.config.get("tie_word_embeddings", _tied(model_type)))
        ),
        tokenizer_length=files.tokenizer_length,
        encoder_length=files.encoder_length,
    )


def _layers(model_type: str, config: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return tuple(_PATTERN.get(letter, "none") for letter in pattern)
    count = int(_first(config, ("num_hidden_layers", "n_layer", "num_layers")) or 0)
    named = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(named, list):
        return tuple(_LAYER_TYPES.get(str(name), "full") for name in named[:count] if count) or ()
    return tuple(_layer(model_type, config, number) for number in range(count))


def _layer(model_type: str, config: Mapping[str, Any], number: int) -> LayerKind:
    """The kind of a layer where the file lists none: as transformers and vLLM fill it in."""
    if model_type == "qwen3_next":
        return "full" if (number + 1) % int(config.get("full_attention_interval", 4)) == 0 else "state"
    if model_type == "jamba":
        period, offset = int(config.get("attn_layer_period", 8)), int(config.get("attn_layer_offset", 4))
        return "full" if number % period == offset else "state"
    return "sliding" if _slides(model_type, config, number) else "full"


def _slides(model_type: str, config: Mapping[str, Any], number: int) -> bool:
    if _window(model_type, config) is None:
        return False
    if model_type in ("gemma3", "gemma3_text"):
        return (number + 1) % int(config.get("sliding_window_pattern", 6)) != 0
    if model_type == "gemma2":
        return number % 2 == 0
    if model_type.startswith("qwen"):
        return number >= int(config.get("max_window_layers", 28))
    # One window for all layers (Mistral, Phi-3): `cache_config.sliding_window`, vllm/engine/arg_utils.py
    return True


def _window(model_type: str, config: Mapping[str, Any]) -> int | None:
    if model_type.startswith("qwen") and not config.get("use_sliding_window"):
        return None
    return _optional(config.get("sliding_window"))


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return (
        _first(config, ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")) or heads
    )


def _positions(config: Mapping[str, Any]) -> int | None:
    if config.get("model_max_length"):
        return int(config["model_max_length"])
    keys = (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
        "seq_len",
    )
    found = [int(config[key]) for key in keys if isinstance(config.get(key), int)]
    return min(found, default=None)


def _tied(model_type: str) -> bool:
    """What transformers takes where the file does not say."""
    return model_type.startswith("gemma")


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)


def _optional(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and value else None


def _optional_text(value: Any) -> str | None:
    return str(value).removeprefix("torch.") if value else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
