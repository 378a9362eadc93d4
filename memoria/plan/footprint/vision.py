"""Encoders of images and audio beside a text model: their weights, and the peak of the profile run.

vLLM encodes one item of the largest size at its start (`MultiModalBudget`, `profile_run`). Sizes that
config.json omits are those of the model's configuration class in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.checkpoint import Tensor, mapping

_QWEN_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 3584}
_GEMMA4_TOWER = {"num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304}
# Those of the models with embeddings per layer (E2B, E4B), which also hear.
_GEMMA4_SMALL = {"num_hidden_layers": 16, "hidden_size": 768, "intermediate_size": 3072}
_GEMMA4_AUDIO = 305_000_000  # parameters
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {"depth": 32, "hidden_size": 1280, "intermediate_size": 5120, "out_hidden_size": 3584},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
    "qwen3_vl": {**_QWEN_TOWER, "deepstack_visual_indexes": (8, 16, 24)},
    "qwen3_vl_moe": {**_QWEN_TOWER, "deepstack_visual_indexes": (8, 16, 24)},
    "qwen3_5": _QWEN_TOWER,
    "qwen3_5_moe": _QWEN_TOWER,
    "gemma3": {"num_hidden_layers": 27, "hidden_size": 1152, "intermediate_size": 4304},
    "gemma4": _GEMMA4_TOWER,
    "dots_ocr": {"num_hidden_layers": 42, "hidden_size": 1536, "intermediate_size": 4224},
    "llava": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096},
    "llava_next": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096},
    "mistral3": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096},
    "pixtral": {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096},
}
# Feed-forwards of three matrices, not two.
_GATED = frozenset({"qwen2_5_vl", "gemma4", "mistral3", "pixtral", "dots_ocr"})
# Processors that let an image have this many tokens, each merged from `spatial_merge_size` squared patches.
_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
_QWEN_TOKENS = 16384
_MERGED = 4


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model's vision tower. `out` is the text model's width."""

    model_type: str
    depth: int
    hidden: int
    intermediate: int
    out: int
    mergers: int
    positions: int
    audio: int

    def tensors(self) -> Iterator[Tensor]:
        """By size alone: names and shapes are approximate."""
        width, matrices = self.hidden, 3 if self.model_type in _GATED else 2
        for number in range(self.depth):
            block = f"visual.blocks.{number}"
            yield Tensor(f"{block}.attn.qkv_proj.weight", "BF16", (4 * width, width))
            yield Tensor(f"{block}.mlp_proj.weight", "BF16", (matrices * width, self.intermediate))
        if self.audio:
            yield Tensor("audio.proj.weight", "BF16", (1, self.audio))
        yield Tensor("visual.embeddings", "BF16", (self.positions, width))
        if self.model_type.startswith(_QWEN):
            merged = _MERGED * width
            for number in range(self.mergers):
                yield Tensor(f"visual.merger.{number}.proj.weight", "BF16", (merged, merged + self.out))
        else:
            yield Tensor("visual.projector.proj.weight", "BF16", (self.out, width + self.out))

    def peak_bytes(self, ranks: int) -> int:
        """An image of the largest size: a block's feed-forward over its patches, and what the text model gets
        of it. 0 where the largest image is small beside a step's tokens."""
        if not self.model_type.startswith(_QWEN):
            return 0
        patches = _QWEN_TOKENS * _MERGED
        return 2 * (
            patches * (2 * self.intermediate // ranks + 4 * self.hidden) + 2 * _QWEN_TOKENS * self.out
        )


def read_encoder(config: Mapping[str, Any], hidden: int, args: Mapping[str, Any]) -> Encoder | None:
    """`config` is the whole config.json. None without a tower, or where the flags leave it out."""
    model_type = _type(config)
    if not is_multimodal(config) or is_left_out(args):
        return None
    stated = {key: value for key, value in mapping(config.get("vision_config")).items() if value is not None}
    hears = model_type == "gemma4" and bool(
        mapping(config.get("text_config")).get("hidden_size_per_layer_input", 1)
    )
    known = {**(_GEMMA4_SMALL if hears else DEFAULTS.get(model_type, {})), **stated}
    depth = known.get("depth") or known.get("num_hidden_layers") or known.get("layers")
    # Qwen2-VL calls its width `embed_dim`, and the text model's `hidden_size`
    width = known.get("embed_dim") or known.get("hidden_size")
    if not isinstance(depth, int) or not isinstance(width, int):
        return None
    return Encoder(
        model_type=model_type,
        depth=depth,
        hidden=width,
        intermediate=int(known.get("intermediate_size") or width * (known.get("mlp_ratio") or 4)),
        out=hidden,
        mergers=1 + len(known.get("deepstack_visual_indexes") or ()),
        positions=int(known.get("num_position_embeddings") or 1024),
        audio=_GEMMA4_AUDIO if hears else 0,
    )


def is_multimodal(config: Mapping[str, Any]) -> bool:
    keys = ("vision_config", "audio_config", "vision_encoder", "thinker_config")
    return _type(config) in DEFAULTS or any(isinstance(config.get(key), dict) for key in keys)


def _type(config: Mapping[str, Any]) -> str:
    if "DotsOCRForCausalLM" in (config.get("architectures") or ()):
        return "dots_ocr"
    return str(config.get("model_type") or "")


def is_left_out(args: Mapping[str, Any]) -> bool:
    """`language_model_only`, or a limit of 0 for all kinds of input (vllm/config/multimodal.py)."""
    limits = mapping(args.get("limit_mm_per_prompt"))
    return bool(args.get("language_model_only")) or (bool(limits) and not any(limits.values()))
