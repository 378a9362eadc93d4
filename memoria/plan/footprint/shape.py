"""The figures in a model's config.json that decide its memory.

Names and their order follow `ModelArchConfigConvertorBase`
(vllm/transformers_utils/model_arch_config_convertor.py). Values that a file omits are the defaults of the
model's configuration class in transformers (`memoria.plan.footprint.model_types`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.checkpoint import ModelFiles, mapping
from memoria.plan.footprint import model_types
from memoria.plan.footprint.model_types import (
    DEFAULTS,
    MLA,
    LayerKind,
    UnknownModelError,
    layer_kinds,
    window,
)
from memoria.plan.footprint.quantization import Scheme, method_of, read_scheme
from memoria.plan.footprint.vision import is_multimodal


@dataclass(frozen=True, slots=True)
class Shape:
    """`layers` has what each layer keeps of a request. `config` is the text model's part of config.json, with
    defaults filled in. `full_kv_heads` and `full_head_size` are those of layers with full attention, which
    differ from the others' in Gemma 4. `predicting` layers follow for multi-token prediction.
    `encoder_only`: no layer keeps anything."""

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
    full_kv_heads: int
    full_head_size: int
    mla_rank: int | None
    rope_size: int
    window: int | None
    chunk: int | None
    experts: int
    experts_per_token: int
    expert_intermediate: int
    quantization: str | None
    quantization_config: Mapping[str, Any]
    scheme: Scheme | None
    stored_dtype: str | None
    positions: int | None
    original_positions: int | None
    rope_type: str
    rope_factor: float
    tied: bool
    predicting: int
    encoder_only: bool
    multimodal: bool
    tokenizer_length: int | None
    encoder_length: int | None

    @property
    def is_sparse(self) -> bool:
        """Attention to selected positions, with an indexer that selects them (DeepSeek V3.2)."""
        return self.mla_rank is not None and "index_topk" in self.config


def read_shape(files: ModelFiles) -> Shape:
    """Raises `UnknownModelError` for a model of an unsupported kind, `KeyError` or `ValueError` where the
    configuration lacks what every transformer's has."""
    text = files.config.get("text_config") or files.config.get("llm_config")
    inner: Mapping[str, Any] = text if isinstance(text, dict) else files.config
    model_type = str(inner.get("model_type") or files.config.get("model_type") or "")
    model_types.check_type(model_type, files.config, inner)
    config = {
        **DEFAULTS.get(model_type, {}),
        **{k: v for k, v in inner.items() if v is not None or k == "sliding_window"},
    }
    heads = _first(config, ("num_attention_heads", "n_head")) or 0
    hidden = _first(config, ("hidden_size", "n_embd", "d_model")) or 0
    count = _first(config, ("num_hidden_layers", "n_layer", "num_layers")) or 0
    layers = layer_kinds(model_type, config, count)
    if hidden <= 0 or not layers:
        raise UnknownModelError("config.json has no `hidden_size` or no layers: it is not a transformer's")
    encoder_only = model_types.is_bidirectional(model_type, files.config, inner)
    is_mla = model_type in MLA and config.get("kv_lora_rank") is not None and not encoder_only
    head_size = int(config.get("head_dim") or (hidden // heads if heads else 0))
    kv_heads = _kv_heads(config, heads)
    if (
        any(kind in ("full", "sliding", "chunked") for kind in layers)
        and min(heads, kv_heads, head_size) <= 0
    ):
        raise UnknownModelError(
            "config.json has no attention heads (`num_attention_heads`) for its attention"
        )
    full_heads = int(config.get("num_global_key_value_heads") or 0) if config.get("attention_k_eq_v") else 0
    is_gemma4 = model_type == "gemma4_text"
    rope = mapping(config.get("rope_parameters") or config.get("rope_scaling"))
    quantization = mapping(
        files.config.get("quantization_config")
        or inner.get("quantization_config")
        or files.config.get("compression_config")
    )
    return Shape(
        model_type=model_type,
        config=config,
        layers=layers,
        hidden=hidden,
        intermediate=_largest(config.get("intermediate_size"))
        or _first(config, ("n_inner", "ffn_dim"))
        or 4 * hidden,
        vocabulary=int(config.get("vocab_size") or 0),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        value_size=int(config.get("v_head_dim") or head_size) if not is_mla else head_size,
        full_kv_heads=(full_heads or kv_heads) if is_gemma4 else kv_heads,
        full_head_size=int(config["global_head_dim"]) if is_gemma4 else head_size,
        mla_rank=int(config["kv_lora_rank"]) if is_mla else None,
        rope_size=int(config.get("qk_rope_head_dim") or 0),
        window=window(model_type, config),
        chunk=_optional(config.get("attention_chunk_size")),
        experts=_first(config, ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts"))
        or 0,
        experts_per_token=_first(
            config, ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
        )
        or 0,
        expert_intermediate=_largest(config.get("moe_intermediate_size") or config.get("intermediate_size")),
        quantization=method_of(quantization),
        quantization_config=quantization,
        scheme=read_scheme(quantization),
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
        tied=model_types.is_tied(model_type, _says_tied(config, files.config)),
        encoder_only=encoder_only,
        predicting=_first(config, ("mtp_num_hidden_layers", "num_nextn_predict_layers")) or 0,
        multimodal=is_multimodal(files.config),
        tokenizer_length=files.tokenizer_length,
        encoder_length=files.encoder_length,
    )


_ROUTED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


def _says_tied(text: Mapping[str, Any], whole: Mapping[str, Any]) -> bool | None:
    """`tie_embedding` is LFM2's old name."""
    for config in (text, whole):
        for key in ("tie_word_embeddings", "tie_embedding"):
            if config.get(key) is not None:
                return bool(config[key])
    return None


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    names = (
        "n_head_kv",
        "num_kv_heads",
        "num_key_value_heads",
        "multi_query_group_num",
        "num_attention_groups",
    )
    return _first(config, names) or heads


def _positions(config: Mapping[str, Any]) -> int | None:
    if config.get("model_max_length"):
        return int(config["model_max_length"])
    keys = (
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
        *("max_sequence_length", "max_seq_length", "seq_len"),
    )
    found = [int(config[key]) for key in keys if isinstance(config.get(key), int)]
    return min(found, default=None)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)


def _largest(value: Any) -> int:
    """A size, or that of the widest layer where the file lists one per layer; 0 where it has none."""
    sizes = value if isinstance(value, list) else [value]
    return max((int(size) for size in sizes if isinstance(size, int)), default=0)


def _optional(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and value else None


def _optional_text(value: Any) -> str | None:
    return str(value).removeprefix("torch.") if value else None
