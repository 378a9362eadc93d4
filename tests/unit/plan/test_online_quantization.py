"""Weights that vLLM quantises while it loads them, and methods that it has dropped."""

from __future__ import annotations

import pytest

from memoria.plan.checkpoint import Tensor
from tests.unit import checkpoints as models
from tests.unit.plan.test_footprint import of


@pytest.mark.parametrize(
    ("method", "linear", "expert"),
    [
        ("fp8", 64 * 64, 64 * 64),
        ("fp8_per_tensor", 64 * 64, 64 * 64),
        ("fp8-per-tensor", 64 * 64, 64 * 64),
        ("fp8_per_channel", 64 * 64, 64 * 64),
        ("mxfp8", 64 * 64 * 33 // 32, 64 * 64 * 33 // 32),
        ("mxfp4", 64 * 64 * 17 // 32, 64 * 64 * 17 // 32),
        ("experts_int8", 64 * 64 * 2, 64 * 64),
        ("int8_per_channel_weight_only", 64 * 64 * 2, 64 * 64),
        ("nvfp4_per_token", 64 * 64 * 2, 64 * 64 * 9 // 16),
    ],
)
def test_quantisation_while_loading_shrinks_what_the_method_covers(
    method: str, linear: int, expert: int
) -> None:
    """The names are those of `_ONLINE_SHORTHANDS`, vllm/config/quantization.py."""
    tensors = {
        "model.layers.0.mlp.up_proj.weight": linear,
        "model.layers.0.mlp.experts.3.up_proj.weight": expert,
        "model.embed_tokens.weight": 64 * 64 * 2,
    }
    for name, size in tensors.items():
        footprint = of(models.LLAMA_8B, Tensor(name, "BF16", (64, 64)), quantization=method)
        assert footprint.weights.total_bytes == size
        assert not any("fail" in caveat for caveat in footprint.caveats)


def test_what_a_method_makes_of_weights_is_what_they_are_shown_as() -> None:
    weight = Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (64, 64))
    embeddings = Tensor("model.embed_tokens.weight", "BF16", (64, 64))
    for method, dtype in (("fp8", "F8_E4M3"), ("mxfp4", "U8"), ("experts_int8", "BF16")):
        weights = of(models.LLAMA_8B, weight, embeddings, quantization=method).weights
        assert {name for name, _ in weights.by_dtype} == {dtype, "BF16"}


def test_the_old_spelling_of_fp8_is_named_and_halves_the_weights_of_the_linear_layers() -> None:
    """vLLM 0.32 warns, and takes it as fp8_per_tensor (`get_quant_config`)."""
    old, new = (of(models.LLAMA_8B, quantization=method) for method in ("fp8", "fp8_per_tensor"))
    assert old.weights == new.weights
    assert old.weights.total_bytes < 0.6 * of(models.LLAMA_8B).weights.total_bytes
    (caveat,) = old.caveats
    assert "deprecated" in caveat
    assert "fp8_per_tensor" in caveat
    assert new.caveats == ()


def test_methods_that_vllm_dropped_are_named() -> None:
    assert "bitsandbytes" in of(models.LLAMA_8B, quantization="bitsandbytes").caveats[0]
    assert of(models.QWEN3_4B_FP8, quantization="fp8").caveats == ()
