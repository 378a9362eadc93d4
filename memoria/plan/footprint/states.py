"""The states of Mamba, linear attention and short convolutions, in bytes per layer and request on one GPU.

Shapes: `MambaStateShapeCalculator` (vllm/model_executor/layers/mamba/mamba_utils.py) with the arguments of
each model's `get_mamba_state_shape_from_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memoria.plan.footprint.shape import Shape

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class UnknownStateError(ValueError):
    """A kind of state that is not known here; the text is for a person."""


def state_bytes(shape: Shape, tensor_parallel: int, dtype_bytes: int, ssm_dtype: str = "auto") -> int:
    """One layer's. The convolution is kept in the model's type, the state in `mamba_ssm_cache_dtype`."""
    config, ranks = shape.config, tensor_parallel
    temporal = _BYTES.get(ssm_dtype, dtype_bytes)
    if shape.model_type in ("granitemoehybrid", "bamba"):
        return _mamba2(
            config["mamba_expand"] * shape.hidden // ranks,
            config["mamba_n_groups"],
            config["mamba_n_heads"],
            config["mamba_d_head"],
            config["mamba_d_state"],
            config["mamba_d_conv"],
            ranks,
            (dtype_bytes, temporal),
        )
    if shape.model_type == "falcon_h1":
        inner = config.get("mamba_d_ssm") or config["mamba_expand"] * shape.hidden
        return _mamba2(
            inner // ranks,
            config["mamba_n_groups"],
            config["mamba_n_heads"],
            config["mamba_d_head"],
            config["mamba_d_state"],
            config["mamba_d_conv"],
            ranks,
            (dtype_bytes, temporal),
        )
    if shape.model_type == "nemotron_h":
        if ssm_dtype == "auto":  # NemotronHForCausalLMConfig, vllm/model_executor/models/config.py
            temporal = _BYTES.get(str(config.get("mamba_ssm_cache_dtype", "float32")), 4)
        return _mamba2(
            config["mamba_num_heads"] * config["mamba_head_dim"] // ranks,
            config["n_groups"],
            config["mamba_num_heads"],
            config["mamba_head_dim"],
            config["ssm_state_size"],
            config["conv_kernel"],
            ranks,
            (dtype_bytes, temporal),
        )
    if shape.model_type == "jamba":
        inner = config["mamba_expand"] * shape.hidden // ranks
        return inner * (config["mamba_d_conv"] - 1) * dtype_bytes + inner * config["mamba_d_state"] * temporal
    if shape.model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        return _gated_delta_net(config, ranks, dtype_bytes, temporal)
    if shape.model_type in ("lfm2", "lfm2_moe"):
        return int(config.get("conv_dim", shape.hidden)) // ranks * (config["conv_L_cache"] - 1) * dtype_bytes
    raise UnknownStateError(f"the states of `{shape.model_type}` are not known to this planner")


def _mamba2(
    inner: int,
    groups: int,
    heads: int,
    head_size: int,
    state: int,
    kernel: int,
    ranks: int,
    sizes: tuple[int, int],
) -> int:
    """`inner` is one GPU's share already. Groups are repeated where there are fewer than GPUs."""
    shared = groups // ranks if groups % ranks == 0 else (groups + ranks - groups) // ranks
    convolution = (inner + 2 * shared * state) * (kernel - 1)
    return convolution * sizes[0] + heads // ranks * head_size * state * sizes[1]


def _gated_delta_net(config: Mapping[str, Any], ranks: int, convolution_bytes: int, state_size: int) -> int:
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key_size, value_size = config["linear_key_head_dim"], config["linear_value_head_dim"]
    channels = (2 * key_size * keys + value_size * values) // ranks
    convolution = channels * (config["linear_conv_kernel_dim"] - 1) * convolution_bytes
    return int(convolution + values // ranks * value_size * key_size * state_size)
