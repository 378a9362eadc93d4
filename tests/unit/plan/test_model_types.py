"""Which models are planned, which with a caveat, and which are refused; how their layers are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.plan.footprint.footprint import Footprint, measure
from memoria.plan.footprint.model_types import (
    DEFAULTS,
    MEASURED,
    READ,
    UnknownModelError,
    layer_kinds,
    window,
)
from memoria.plan.footprint.settings import Machine
from memoria.preflight.outcomes import make_outcomes
from memoria.text import GIB
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files
from tests.unit.plan.test_kv_cache import RECORDS
from tests.unit.plan_examples import default_config, planned

GPU = Machine(80 * GIB, "NVIDIA H100")
WHISPER = {
    "model_type": "whisper",
    "is_encoder_decoder": True,
    "d_model": 1280,
    "decoder_layers": 32,
    "decoder_attention_heads": 20,
    "num_hidden_layers": 32,
    "vocab_size": 51866,
    "max_target_positions": 448,
}
T5 = {"model_type": "t5", "d_model": 1024, "num_layers": 24, "num_heads": 16, "vocab_size": 32128}
KIMI_LINEAR = {
    "model_type": "kimi_linear",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [number for number in range(1, 27) if number % 4],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "vocab_size": 163840,
    "model_max_length": 1048576,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V32 = {
    **models.DEEPSEEK_V2_LITE,
    "model_type": "deepseek_v32",
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
}


def of(config: Mapping[str, Any], *, pooling: bool = False, **args: Any) -> Footprint:
    return measure(model_files(config), args, GPU, pooling=pooling)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (WHISPER, "an encoder-decoder"),
        (T5, "an encoder-decoder"),
        ({**models.LLAMA_8B, "num_attention_heads": 0, "num_key_value_heads": 0}, "no attention heads"),
        ({**models.LLAMA_8B, "num_attention_heads": 0}, "no attention heads"),
        ({**models.LLAMA_8B, "head_dim": -8}, "no attention heads"),
        ({**models.LLAMA_8B, "hidden_size": 0}, "no `hidden_size` or no layers"),
        ({**models.LLAMA_8B, "model_type": "zzz", "mamba_d_state": 16}, "keeps states"),
        ({**models.LLAMA_8B, "model_type": "zzz", "linear_key_head_dim": 16}, "keeps states"),
        ({**models.LLAMA_8B, "model_type": "zzz", "ssm_state_size": 16}, "keeps states"),
        ({**models.LLAMA_8B, "model_type": "zzz", "state_size": 16}, "keeps states"),
        ({**models.LLAMA_8B, "model_type": "deepseek_v4"}, "does not support the caches of `deepseek_v4`"),
        (
            {**models.LLAMA_8B, "layer_types": ["spiral_attention"] * 32},
            "does not support layers of the kind `spiral_attention`",
        ),
        ({**models.LLAMA_8B, "num_hidden_layers": "many"}, "no `hidden_size` or no layers"),
        ({**models.GRANITE_TINY, "mamba_d_state": None}, "lacks 'mamba_d_state'"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_its_reason(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        of(config)
    assert said in str(caught.value)


def test_a_model_that_cannot_be_planned_is_shown_as_unknown() -> None:
    wanted = default_config()
    plan, _ = planned(wanted, "RTX 4090")
    outcomes = make_outcomes(wanted, plan, {"embedding": model_files(WHISPER)}, {})
    assert outcomes.unknown["embedding"].what.startswith(
        "embedding cannot be planned: `whisper` is an encoder-decoder"
    )


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70_000),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.sampled_from(["full_attention", "conv", "x"])), max_size=4),
    st.dictionaries(
        st.sampled_from(["kda_layers", "rope_type", "bits", "factor"]), st.integers(), max_size=2
    ),
)
_KEYS = st.sampled_from(
    sorted(
        {key for config in vars(models).values() if isinstance(config, dict) for key in config}
        | {key for config in (KIMI_LINEAR, DEEPSEEK_V32, *DEFAULTS.values()) for key in config}
        | {"quantization_config", "text_config", "layer_types", "num_kv_shared_layers", "attention_k_eq_v"}
    )
)
_BASES = st.sampled_from([models.LLAMA_8B, models.GEMMA3_1B, models.GRANITE_TINY, KIMI_LINEAR, DEEPSEEK_V32])


@given(_BASES, st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_no_configuration_ends_in_anything_but_a_plan_or_a_reason(
    base: dict[str, Any], odd: dict[str, Any]
) -> None:
    try:
        footprint = of({**base, **odd})
    except UnknownModelError:
        return
    footprint.kv_cache.capacity(10**9)


def test_a_type_that_was_not_compared_is_planned_with_a_caveat() -> None:
    assert of({**models.LLAMA_8B, "model_type": "zzz"}).caveats == (
        "counted as plain attention; not verified for `zzz`",
    )
    assert of(models.LLAMA_8B).caveats == ()


def test_flags_that_move_memory_uncounted_are_named() -> None:
    found = of(
        models.LLAMA_8B,
        speculative_config='{"model": "x/eagle3", "num_speculative_tokens": 2}',
        enable_lora=True,
        cpu_offload_gb=4,
        pipeline_parallel_size=1,
    ).caveats
    assert found == (
        "not counted: the draft model and its KV cache (speculative_config)",
        "not counted: weights kept on the host (cpu_offload_gb)",
    )


def test_the_table_names_what_was_measured_and_nothing_else() -> None:
    measured = {record["config"]["model_type"] for record in RECORDS.values()}
    assert measured - READ == MEASURED
    assert not MEASURED & READ


@pytest.mark.parametrize(
    ("model_type", "config", "count", "kinds"),
    [
        ("cohere2", {"sliding_window": 4096}, 8, "sssfsssf"),
        ("cohere2", {"sliding_window": 4096, "sliding_window_pattern": 2}, 4, "sfsf"),
        ("gpt_oss", {"sliding_window": 128}, 4, "sfsf"),
        ("lfm2", {"full_attn_idxs": [1, 3]}, 4, "mfmf"),
        ("lfm2", {}, 2, "ff"),
        ("qwen3_5_text", {"full_attention_interval": 3}, 6, "mmfmmf"),
        ("qwen3_5_text", {}, 4, "mmmf"),
        ("llama4_text", {"attention_chunk_size": 8192}, 4, "cccf"),
        ("llama4_text", {"attention_chunk_size": 8192, "no_rope_layers": [1, 0]}, 2, "cf"),
        ("llama4_text", {"attention_chunk_size": None}, 2, "ff"),
        ("gemma4_text", {"sliding_window": 512, "num_kv_shared_layers": 2}, 8, "sssssf__"),
        ("gemma3n_text", {"sliding_window": 512, "num_kv_shared_layers": 5}, 10, "ssssf_____"),
        ("gemma4_text", {"sliding_window": 512, "layer_types": ["sliding_attention"] * 3}, 3, "ssf"),
        ("mamba2", {}, 2, "mm"),
        ("olmo3", {"sliding_window": 4096}, 4, "sssf"),
        ("kimi_linear", {"linear_attn_config": {"kda_layers": [1, 2, 3]}}, 4, "mmmf"),
        ("mistral", {"sliding_window": None}, 2, "ff"),
        ("qwen2_moe", {"sliding_window": 8, "use_sliding_window": True}, 2, "ff"),
        ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": True}, 2, "ss"),
        ("nemotron_h", {"hybrid_override_pattern": "M-*E"}, 0, "m.f."),
    ],
)
def test_layers_that_a_file_does_not_list_are_those_of_transformers(
    model_type: str, config: dict[str, Any], count: int, kinds: str
) -> None:
    letters = {"full": "f", "sliding": "s", "chunked": "c", "state": "m", "shared": "_", "none": "."}
    assert "".join(letters[kind] for kind in layer_kinds(model_type, config, count)) == kinds


def test_coheres_window_counts_the_token_itself() -> None:
    assert window("cohere2", {"sliding_window": 4096}) == 4097
    assert window("mistral", {"sliding_window": 4096}) == 4096
    assert window("qwen3", {"sliding_window": 4096}) is None


def test_chunks_free_nothing_unless_vllm_is_configured_to() -> None:
    llama4 = {**models.LLAMA_8B, "model_type": "llama4_text", "attention_chunk_size": 8192}
    whole = measure(model_files(llama4), {}, GPU, pooling=False).kv_cache
    environ = {"VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1"}
    parts = measure(model_files(llama4), {}, GPU, pooling=False, environ=environ).kv_cache
    assert len(whole.groups) == 1
    assert parts.request_bytes < whole.request_bytes / 2


@pytest.mark.parametrize(
    "config",
    [
        {**models.GEMMA3_1B, "architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True},
        {**models.QWEN2_7B, "is_causal": False},
        {**models.LLAMA_8B, "architectures": ["LlamaBidirectionalModel"]},
    ],
    ids=["embedding-gemma", "declared", "llama"],
)
def test_bidirectional_attention_keeps_nothing(config: dict[str, Any]) -> None:
    assert of(config, pooling=True).kv_cache.groups == ()


def test_kimi_linear_keeps_seven_latents_and_twenty_states() -> None:
    footprint = of(KIMI_LINEAR)
    assert footprint.shape.layers.count("full") == 7
    assert footprint.shape.layers.count("state") == 20
    # The convolution in the model's type, the state in float32 (`kda_state_dtype`, mamba_utils.py).
    state = 3 * 32 * 128 * 3 * 2 + 32 * 128 * 128 * 4
    (latent,) = {group.layer.page_bytes for group in footprint.kv_cache.groups}
    assert latent >= state
    assert latent % ((512 + 64) * 2 * 128) == 0


def test_sparse_attention_keeps_what_its_indexer_reads() -> None:
    latent, index = (512 + 64) * 2, 128 + 4
    assert of(DEEPSEEK_V32).token_bytes == 27 * (latent + index)
    assert of(DEEPSEEK_V32, kv_cache_dtype="fp8").token_bytes == 27 * (656 + index)
    every_fourth = {**DEEPSEEK_V32, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    indexed = 3 + 6  # layers 0 to 2, then 6, 10 and on
    assert of(every_fourth).token_bytes == 27 * latent + indexed * index


@pytest.mark.parametrize(
    ("config", "args", "token_bytes"),
    [
        (models.LLAMA_8B, {"kv_cache_dtype": "nvfp4"}, 32 * 8 * 2 * (64 + 8)),
        (models.LLAMA_8B, {"kv_cache_dtype": "int4_per_token_head"}, 32 * 8 * (64 + 64 + 8)),
        (models.LLAMA_8B, {"kv_cache_dtype": "fp8_per_token_head"}, 32 * 8 * (128 + 128 + 8)),
        (
            models.LLAMA_8B,
            {"kv_cache_dtype": "turboquant_4bit_nc"},
            28 * 8 * (64 + 2 + 64 + 4) + 4 * 8 * 2 * 128 * 2,
        ),
        (
            {
                **models.LLAMA_8B,
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "kv_cache_scheme": {"num_bits": 8},
                },
            },
            {},
            32 * 8 * 2 * 128,
        ),
        (
            {
                **models.LLAMA_8B,
                "quantization_config": {
                    "quant_method": "modelopt",
                    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
                },
            },
            {},
            32 * 8 * 2 * 128,
        ),
        (
            {
                **models.LLAMA_8B,
                "quantization_config": {
                    "quant_method": "modelopt",
                    "kv_cache_scheme": {"type": "float", "num_bits": 4},
                },
            },
            {},
            32 * 8 * 2 * (64 + 8),
        ),
        (
            {
                **models.LLAMA_8B,
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "kv_cache_scheme": {"num_bits": 8},
                },
            },
            {"kv_cache_dtype": "bfloat16"},
            32 * 8 * 2 * 128 * 2,
        ),
    ],
)
def test_a_token_is_kept_in_the_caches_own_type(
    config: dict[str, Any], args: dict[str, Any], token_bytes: int
) -> None:
    """The types' sizes: `customize_spec` of vLLM's attention backends."""
    assert of(config, **args).token_bytes == token_bytes


def test_a_cache_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnknownModelError, match=r"does not support .* `ultraquant_4bit`"):
        of(models.LLAMA_8B, kv_cache_dtype="ultraquant_4bit")
    with pytest.raises(UnknownModelError, match="for MLA only"):
        of(models.LLAMA_8B, kv_cache_dtype="fp8_ds_mla")
