"""The states of Mamba, linear attention and short convolutions, in bytes per layer and request on one GPU.

Shapes: `MambaStateShapeCalculator` (vllm/model_executor/layers/mamba/mamba_utils.py) with the arguments of
each model's `get_mamba_state_shape_from_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memoria.plan.footprint.shape import Shape

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MAMBA2 = frozenset({"granitemoehybrid", "falcon_h1", "nemotron_h"})


class UnknownStateError(ValueError):
    """A kind of state that is not known here; the text is for a person."""


def state_bytes(shape: Shape, tensor_parallel: int, dtype_bytes: int, ssm_dtype: str = "auto") -> int:
    """One layer's. The convolution is kept in the model's type, the state in `mamba_ssm_cache_dtype`."""
    config, ranks = shape.config, tensor_parallel
    temporal = _BYTES.get(ssm_dtype, dtype_bytes)
    if (mamba2 := _mamba2(shape)) is not None:
        if shape.model_type == "nemotron_h" and ssm_dtype == "auto":
            # NemotronHForCausalLMConfig, vllm/model_executor/models/config.py
            temporal = _BYTES.get(str(config.get("mamba_ssm_cache_dtype", "float32")), 4)
        return mamba2.convolution(ranks) * dtype_bytes + mamba2.temporal(ranks) * temporal
    if shape.model_type == "jamba":
        inner = config["mamba_expand"] * shape.hidden // ranks
        return int(inner * ((config["mamba_d_conv"] - 1) * dtype_bytes + config["mamba_d_state"] * temporal))
    if shape.model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        return _gated_delta_net(config, ranks, dtype_bytes, temporal)
    if shape.model_type in ("lfm2", "lfm2_moe"):
        channels = int(config.get("conv_dim", shape.hidden)) // ranks
        return int(channels * (config["conv_L_cache"] - 1) * dtype_bytes)
    raise UnknownStateError(f"the states of `{shape.model_type}` are not known to this planner")


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
