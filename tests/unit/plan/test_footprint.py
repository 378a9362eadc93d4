"""Weights and lengths of public models, each figure from its model card or its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from memoria.plan.checkpoint import ModelFiles, Tensor
from memoria.plan.footprint.footprint import Footprint, measure
from memoria.plan.footprint.settings import Machine
from memoria.plan.footprint.shape import read_shape
from memoria.plan.footprint.weights import tensors_from_shape
from memoria.text import GIB
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files

SMALL = Machine(24 * GIB, "RTX 4090")


def of(config: Mapping[str, Any], *tensors: Tensor, pooling: bool = False, **args: Any) -> Footprint:
    return measure(model_files(config, *tensors), args, SMALL, pooling=pooling)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (models.LLAMA_8B, 8_030_261_248),
        (models.QWEN2_7B, 7_615_616_512),
        (models.QWEN3_EMBEDDING, 595_776_512),
        (models.QWEN3_4B_FP8, 4_022_468_096),
        (models.MISTRAL_7B, 7_241_732_096),
        (models.GEMMA3_1B, 999_885_952),
        (models.PHI3_MINI, 3_821_079_552),
        (models.MIXTRAL, 46_702_792_704),
        (models.DEEPSEEK_V2_LITE, 15_706_484_224),
        (models.BGE_BASE, 109_482_240),
        (models.MODERNBERT, 149_014_272),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_parameters_from_a_configuration_are_those_of_the_model(
    config: dict[str, Any], parameters: int
) -> None:
    tensors = tensors_from_shape(read_shape(model_files(config)))
    assert sum(tensor.parameters for tensor in tensors if "scale" not in tensor.name) == parameters


@pytest.mark.parametrize(
    ("config", "token_bytes"),
    [
        (models.LLAMA_8B, 32 * 2 * 8 * 128 * 2),
        (models.QWEN2_7B, 28 * 2 * 4 * 128 * 2),
        (models.PHI3_MINI, 32 * 2 * 32 * 96 * 2),
        (models.DEEPSEEK_V2_LITE, 27 * (512 + 64) * 2),
        (models.MISTRAL_7B, 0),  # a window forgets
        (models.BGE_BASE, 0),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_token_takes_its_keys_and_values_in_every_layer(config: dict[str, Any], token_bytes: int) -> None:
    assert of(config).token_bytes == token_bytes


def test_a_half_wide_cache_halves_the_token() -> None:
    assert of(models.LLAMA_8B, kv_cache_dtype="fp8").token_bytes * 2 == of(models.LLAMA_8B).token_bytes


def test_four_gpus_share_the_heads_and_the_matrices() -> None:
    one, four = of(models.LLAMA_8B), of(models.LLAMA_8B, tensor_parallel_size=4)
    assert four.token_bytes * 4 == one.token_bytes
    assert four.weights.total_bytes == pytest.approx(one.weights.total_bytes / 4, rel=0.001)


def test_more_gpus_than_heads_repeat_them_and_a_latent_is_never_divided() -> None:
    assert of(models.LLAMA_8B, tensor_parallel_size=16).token_bytes == 32 * 2 * 128 * 2
    assert (
        of(models.DEEPSEEK_V2_LITE, tensor_parallel_size=4).token_bytes
        == of(models.DEEPSEEK_V2_LITE).token_bytes
    )


@pytest.mark.parametrize(
    ("tensor", "size"),
    [
        (Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (64, 32)), 64 * 32 * 2),
        (Tensor("model.layers.0.mlp.up_proj.weight", "F32", (64, 32)), 64 * 32 * 2),
        (Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (64, 32)), 64 * 32),
        (Tensor("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", (4, 2)), 4 * 2 * 4),
        (Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (8, 32)), 8 * 32 * 4),
        (Tensor("model.layers.0.mlp.up_proj.weight", "U8", (1024, 1)), 1024),
        (Tensor("model.layers.99.mlp.up_proj.weight", "BF16", (64, 32)), 0),
        (Tensor("model.embed_tokens.weight", "BF16", (151669, 2)), 151680 * 2 * 2),
        (Tensor("lm_head.weight", "BF16", (151669, 2)), 0),
        (Tensor("language_model.lm_head.weight", "BF16", (151669, 2)), 0),
        (Tensor("mtp.fc.weight", "BF16", (8, 8)), 0),
        (Tensor("model.mtp.layers.0.mlp.up_proj.weight", "BF16", (8, 8)), 0),
        (Tensor("audio_tower.layers.30.fc1.weight", "BF16", (8, 8)), 128),
        (Tensor("visual.encoder.layers.99.fc1.weight", "BF16", (8, 8)), 128),
        (Tensor("model.language_model.layers.99.mlp.up_proj.weight", "BF16", (64, 32)), 0),
    ],
    ids=[
        *(
            "bf16",
            "f32",
            "fp8",
            "scale",
            "gptq",
            "bitsandbytes",
            "beyond",
            "vocabulary",
            "tied",
            "inner-tied",
        ),
        *("mtp", "inner-mtp", "audio", "vision", "inner-beyond"),
    ],
)
def test_a_stored_tensor_weighs_what_vllm_makes_of_it(tensor: Tensor, size: int) -> None:
    weights = of(models.QWEN3_EMBEDDING, tensor).weights
    assert weights.total_bytes == size
    assert weights.exact


def compressed(bits: int, kind: str, form: str, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


LINEAR = 32 * (4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336)
ROWS = 32 * (4096 * 2 + 1024 * 2 + 14336 * 2 + 4096)
OTHER = 2 * (8_030_261_248 - LINEAR)


@pytest.mark.parametrize(
    ("quantization", "linear"),
    [
        (compressed(8, "int", "int-quantized", "channel"), LINEAR + 4 * ROWS),
        (compressed(8, "float", "float-quantized", "channel"), LINEAR + 4 * ROWS),
        (compressed(8, "float", "float-quantized", "tensor"), LINEAR + 4 * 32 * 7),
        (compressed(4, "int", "pack-quantized", "group", group_size=128), LINEAR // 2 + LINEAR // 128 * 2),
        (compressed(8, "int", "pack-quantized", "channel"), LINEAR + 2 * ROWS),
        (
            compressed(4, "float", "nvfp4-pack-quantized", "tensor_group", group_size=16),
            LINEAR // 2 + LINEAR // 16,
        ),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, LINEAR + 4 * 32 * 7),
        (
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}},
            LINEAR // 2 + LINEAR // 16,
        ),
        ({"quant_method": "fp8"}, LINEAR + 4 * 32 * 7),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, LINEAR + LINEAR // 128**2 * 4),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True},
            LINEAR // 2 + LINEAR // 64 * 2 + LINEAR // 64 // 2,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, LINEAR + 4 * ROWS),
        ({"quant_method": "quark"}, LINEAR * 2),
    ],
    ids=lambda value: (
        value.get("format", value.get("quant_method", "modelopt")) if isinstance(value, dict) else ""
    ),
)
def test_quantised_weights_are_counted_without_their_files(quantization: dict[str, Any], linear: int) -> None:
    weights = of({**models.LLAMA_8B, "quantization_config": quantization}).weights
    each = {"compressed-tensors": 3 * 6, "fp8": 4 * 2}  # scales of a layer's cache
    assert weights.total_bytes == OTHER + linear + 32 * each.get(quantization.get("quant_method", ""), 0)
    assert not weights.exact


def test_bits_and_groups_of_gptq_are_read() -> None:
    def size(**more: Any) -> int:
        return of(
            {**models.LLAMA_8B, "quantization_config": {"quant_method": "gptq", **more}}
        ).weights.total_bytes

    four, eight = size(bits=4, group_size=128), size(bits=8, group_size=128)
    assert eight - four == pytest.approx(LINEAR / 2, rel=0.01)
    assert size(bits=4, group_size=32) > four > size(bits=4, group_size=-1)


def test_layers_that_are_left_alone_keep_their_width() -> None:
    fp8 = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp"]}
    all_of_it = of({**models.LLAMA_8B, "quantization_config": {"quant_method": "fp8"}}).weights.total_bytes
    but_one = of({**models.LLAMA_8B, "quantization_config": fp8}).weights.total_bytes
    assert but_one - all_of_it == 3 * 4096 * 14336 - 3 * 4


def test_a_method_of_unknown_storage_is_named_only_where_the_files_are_missing() -> None:
    config = {**models.LLAMA_8B, "quantization_config": {"quant_method": "quark"}}
    assert of(config).caveats == (
        "without its files, a model quantised with `quark` is counted as unquantised",
    )
    assert of(config, Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (64, 64))).caveats == ()


def test_an_index_corrects_what_a_configuration_makes_believe() -> None:
    stored = 2 * 8_030_261_248
    half = measure(model_files(models.LLAMA_8B, index_bytes=stored // 2), {}, SMALL, pooling=False)
    assert half.weights.total_bytes == pytest.approx(stored // 2, rel=0.001)
    assert not half.weights.exact
    pooled = measure(model_files(models.LLAMA_8B, index_bytes=stored), {}, SMALL, pooling=True)
    assert pooled.weights.total_bytes == pytest.approx(stored - 2 * 128256 * 4096, rel=0.001)


def test_scales_of_weights_of_a_byte_are_widened_and_others_are_not() -> None:
    """`BlockQuantScaleParameter` of fp8.py is float32, a scale of packed weights has the model's dtype."""
    scale = Tensor("model.layers.0.mlp.up_proj.weight_scale_inv", "BF16", (4, 2))
    weight = Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (64, 32))
    assert of(models.LLAMA_8B, weight, scale).weights.total_bytes == 64 * 32 + 4 * 2 * 4
    packed = Tensor("model.layers.0.mlp.up_proj.weight_packed", "I32", (8, 32))
    scale = Tensor("model.layers.0.mlp.up_proj.weight_scale", "BF16", (4, 2))
    assert of(models.LLAMA_8B, packed, scale).weights.total_bytes == 8 * 32 * 4 + 4 * 2 * 2


def test_a_fused_projection_is_not_taken_for_keys_and_values() -> None:
    fused = Tensor("model.layers.0.self_attn.qkv_proj.weight", "BF16", (6144, 4096))
    keys = Tensor("model.layers.0.self_attn.k_proj.weight", "BF16", (1024, 4096))
    assert of(models.LLAMA_8B, fused, tensor_parallel_size=16).weights.total_bytes == 6144 * 4096 * 2 // 16
    assert of(models.LLAMA_8B, keys, tensor_parallel_size=16).weights.total_bytes == 1024 * 4096 * 2 // 8


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "cohere", "starcoder2", "falcon", "bloom", "gemma2"])
def test_heads_are_tied_where_transformers_ties_them_by_itself(model_type: str) -> None:
    untold = {key: value for key, value in models.LLAMA_8B.items() if key != "tie_word_embeddings"}
    assert read_shape(model_files({**untold, "model_type": model_type})).tied
    assert not read_shape(model_files({**untold, "model_type": "llama"})).tied


def test_shared_layers_have_no_keys_and_values_of_their_own() -> None:
    """Dropped while loading (`_gemma4_layer_weights_mapper`, gemma4.py); equal keys are values too."""
    gemma = {
        **models.GEMMA3_1B,
        "model_type": "gemma4_text",
        "num_kv_shared_layers": 2,
        "attention_k_eq_v": True,
    }
    for number, size in ((0, 128), (5, 256), (24, 0)):
        keys = Tensor(f"model.layers.{number}.self_attn.k_proj.weight", "BF16", (8, 8))
        assert of(gemma, keys).weights.total_bytes == size


def test_weights_that_are_not_there_are_said_to_be_estimated() -> None:
    weights = of(models.QWEN3_4B_FP8).weights
    assert not weights.exact
    assert dict(weights.by_dtype).keys() == {"F8_E4M3", "BF16", "F32"}


@pytest.mark.parametrize(
    ("config", "more", "length"),
    [
        (models.LLAMA_8B, {}, 131072),
        ({**models.LLAMA_8B, "rope_scaling": {"type": "linear", "factor": 2.5}}, {}, 327680),
        ({**models.LLAMA_8B, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, 131072),
        (
            {
                **models.PHI3_MINI,
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            {},
            4096,
        ),
        (models.LLAMA_8B, {"tokenizer_length": 8192}, 131072),
        (models.BGE_BASE, {"encoder_length": 256}, 256),
        ({key: value for key, value in models.LLAMA_8B.items() if "position" not in key}, {}, 2048),
    ],
    ids=["plain", "linear", "yarn", "longrope", "tokenizer", "sentence", "unsaid"],
)
def test_the_context_is_as_long_as_vllm_makes_it(
    config: dict[str, Any], more: dict[str, Any], length: int
) -> None:
    files: ModelFiles = model_files(config, **more)
    assert measure(files, {}, SMALL, pooling=False).settings.max_model_len == length


def test_a_tokenizer_bounds_pooling_with_absolute_positions_alone() -> None:
    """`get_and_verify_max_len`, vllm/config/model.py."""
    for kind, length in (("absolute", 384), ("rotary", 512)):
        files = model_files({**models.BGE_BASE, "position_embedding_type": kind}, tokenizer_length=384)
        assert measure(files, {}, SMALL, pooling=True).settings.max_model_len == length


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (models.LLAMA_8B, 131072),
        (
            {
                **models.PHI3_MINI,
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            131072,
        ),
        ({key: value for key, value in models.LLAMA_8B.items() if "position" not in key}, None),
    ],
    ids=["plain", "longrope", "unsaid"],
)
def test_the_longest_context_is_what_vllm_accepts(config: dict[str, Any], longest: int | None) -> None:
    assert of(config).settings.longest == longest
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    any_length = measure(model_files(config), {}, SMALL, pooling=False, environ=allowed)
    assert any_length.settings.longest is None


@pytest.mark.parametrize(("written", "length"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5k", 1500)])
def test_a_length_is_read_as_vllm_reads_it(written: str, length: int) -> None:
    assert of(models.LLAMA_8B, max_model_len=written).settings.max_model_len == length


@pytest.mark.parametrize(
    ("machine", "args", "expected"),
    [
        (SMALL, {}, (256, 2048)),
        (Machine(80 * GIB, "NVIDIA H100"), {}, (1024, 8192)),
        (Machine(80 * GIB, "NVIDIA A100-SXM4-80GB"), {}, (256, 2048)),
        (Machine(178 * GIB, "NVIDIA B200"), {}, (1024, 16384)),
        (Machine(24 * GIB, "2 CPUs", on_cpu=True), {}, (128, 2048)),
        (SMALL, {"max_num_batched_tokens": 100}, (100, 100)),
        (SMALL, {"max_num_seqs": 2, "max_model_len": 512}, (2, 1024)),
    ],
    ids=["small", "h100", "a100", "b200", "cpu", "tokens", "sequences"],
)
def test_batches_have_vllms_own_defaults(
    machine: Machine, args: dict[str, Any], expected: tuple[int, int]
) -> None:
    settings = measure(model_files(models.LLAMA_8B), args, machine, pooling=False).settings
    assert (settings.max_num_seqs, settings.max_num_batched_tokens) == expected


def test_graphs_cost_nothing_where_there_are_none() -> None:
    assert of(models.LLAMA_8B).peaks.graph_bytes > 0
    assert of(models.LLAMA_8B, enforce_eager=True).peaks.graph_bytes == 0
    assert of(models.BGE_BASE, pooling=True).peaks.graph_bytes == 0


def test_a_text_model_inside_another_is_found() -> None:
    nested = {"model_type": "llava", "text_config": models.LLAMA_8B, "vision_config": {}}
    assert of(nested).token_bytes == of(models.LLAMA_8B).token_bytes


@pytest.mark.parametrize(
    "config",
    [{}, {"model_type": "llama"}, {"model_type": "mamba9", "hidden_size": 8, "layer_types": ["mamba"]}],
)
def test_what_is_no_known_model_is_refused_with_a_reason(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hidden_size|states|lacks"):
        of({"num_hidden_layers": 1, **config} if config else config)
