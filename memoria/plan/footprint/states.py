"""The states of Mamba, linear attention and short convolutions, in bytes per layer and request on one GPU.

Shapes: `MambaStateShapeCalculator` (vllm/model_executor/layers/mamba/mamba_utils.py) with the arguments of
each model's `get_mamba_state_shape_from_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.footprint.model_types import UnknownModelError
from memoria.plan.footprint.settings import Settings
from memoria.plan.footprint.shape import Shape

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MAMBA2 = frozenset({"falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h"})


def state_bytes(shape: Shape, settings: Settings) -> int:
    """One layer's. Raises `UnknownModelError` for a state of no known kind."""
    config, ranks = shape.config, settings.tensor_parallel
    convolution, temporal = _element_bytes(shape, settings)
    if (mamba2 := _mamba2(shape)) is not None:
        return mamba2.convolution(ranks) * convolution + mamba2.temporal(ranks) * temporal
    if shape.model_type == "jamba":
        inner = config["mamba_expand"] * shape.hidden // ranks
        return int(inner * ((config["mamba_d_conv"] - 1) * convolution + config["mamba_d_state"] * temporal))
    if shape.model_type in ("falcon_mamba", "mamba"):
        inner = int(config["expand"] * shape.hidden) // ranks
        return int(inner * ((config["conv_kernel"] - 1) * convolution + config["state_size"] * temporal))
    if shape.model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        return _gated_delta_net(config, ranks, convolution, temporal)
    if shape.model_type in ("lfm2", "lfm2_moe"):
        channels = int(config.get("conv_dim", shape.hidden)) // ranks
        return int(channels * (config["conv_L_cache"] - 1) * convolution)
    if shape.model_type == "kimi_linear":
        linear = config["linear_attn_config"]
        heads, size = linear["num_heads"], linear["head_dim"]
        channels = 3 * heads * size // ranks
        kept = channels * (linear["short_conv_kernel_size"] - 1) * convolution
        return int(kept + heads // ranks * size * size * temporal)
    raise UnknownModelError(f"the states of `{shape.model_type}` are not known to this planner")


def _element_bytes(shape: Shape, settings: Settings) -> tuple[int, int]:
    """Of the convolution and of the state. Where the flags leave it open, some models choose for themselves
    (vllm/model_executor/models/config.py; `kda_state_dtype` in mamba_utils.py)."""
    convolution = _BYTES.get(settings.convolution_dtype, settings.dtype_bytes)
    chosen = settings.state_dtype
    if chosen == "auto":
        key = {"nemotron_h": "mamba_ssm_cache_dtype"}.get(shape.model_type, "mamba_ssm_dtype")
        fallback = "float32" if shape.model_type in ("kimi_linear", "nemotron_h") else "auto"
        chooses = shape.model_type in ("nemotron_h", "qwen3_5_text", "qwen3_5_moe_text")
        chosen = str(shape.config.get(key) or fallback) if chooses else fallback
    return convolution, _BYTES.get(chosen, convolution)


@dataclass(frozen=True, slots=True)
class _Mamba2:
    """Elements of the two states of a Mamba 2 layer (`mamba2_state_shape`)."""

    inner: int
    groups: int
    heads: int
    head_size: int
    state_size: int
    kernel: int

    def convolution(self, ranks: int) -> int:
        """Groups are repeated where they cannot be divided among the GPUs."""
        groups = self.groups if self.groups % ranks == 0 else ranks
        return (self.inner + 2 * groups * self.state_size) // ranks * (self.kernel - 1)

    def temporal(self, ranks: int) -> int:
        return self.heads // ranks * self.head_size * self.state_size


def _mamba2(shape: Shape) -> _Mamba2 | None:
    config = shape.config
    if shape.model_type == "nemotron_h":
        heads, size = config["mamba_num_heads"], config["mamba_head_dim"]
        return _Mamba2(
            heads * size, config["n_groups"], heads, size, config["ssm_state_size"], config["conv_kernel"]
        )
    if shape.model_type == "mamba2":
        inner, heads = config["expand"] * shape.hidden, config["num_heads"]
        return _Mamba2(
            inner, config["n_groups"], heads, config["head_dim"], config["state_size"], config["conv_kernel"]
        )
    if shape.model_type in ("granitemoehybrid", "falcon_h1"):
        inner = config.get("mamba_d_ssm") or config["mamba_expand"] * shape.hidden
        heads, size = config["mamba_n_heads"], config["mamba_d_head"]
        return _Mamba2(
            inner, config["mamba_n_groups"], heads, size, config["mamba_d_state"], config["mamba_d_conv"]
        )
    return None


def _gated_delta_net(config: Mapping[str, Any], ranks: int, convolution_bytes: int, state_size: int) -> int:
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_size, value_size = config["linear_key_head_dim"], config["linear_value_head_dim"]
    channels = (2 * key_size * keys + value_size * values) // ranks
    convolution = channels * (config["linear_conv_kernel_dim"] - 1) * convolution_bytes
    return int(convolution + values // ranks * value_size * key_size * state_size)
