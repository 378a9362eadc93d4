"""Tiny models of many architectures: configurations of public models, shrunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIZE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1040,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 3,
}


def _model(architecture: str, model_type: str, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **_SIZE,
        "num_hidden_layers": layers,
        "tie_word_embeddings": True,
        **more,
    }


_MAMBA2 = {
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 64,
}
_GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_LFM2 = {
    "conv_dim": 128,
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_dim": 128,
    "block_ff_dim": 256,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
_EMBED = {"runner": "pooling"}
# By name: the configuration, and the flags beside those that every start has.
MODELS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (_model("LlamaForCausalLM", "llama", 3, rope_theta=10000.0), {}),
    "llama-mha": (_model("LlamaForCausalLM", "llama", 2, num_key_value_heads=4), {"max_model_len": 1000}),
    "qwen2": (_model("Qwen2ForCausalLM", "qwen2", 3, sliding_window=512, use_sliding_window=False), {}),
    "qwen3": (_model("Qwen3ForCausalLM", "qwen3", 3, head_dim=64), {"kv_cache_memory_bytes": 33_333_333}),
    "mistral-window": (_model("MistralForCausalLM", "mistral", 3, sliding_window=256, head_dim=32), {}),
    "gemma3-hybrid": (
        _model(
            "Gemma3ForCausalLM",
            "gemma3_text",
            8,
            head_dim=64,
            sliding_window=256,
            sliding_window_pattern=6,
            query_pre_attn_scalar=64,
            rope_local_base_freq=10000.0,
        ),
        {"max_num_batched_tokens": 512},
    ),
    "gemma2-hybrid": (
        _model(
            "Gemma2ForCausalLM",
            "gemma2",
            5,
            head_dim=64,
            sliding_window=512,
            query_pre_attn_scalar=64,
            attn_logit_softcapping=None,
        ),
        {"max_num_batched_tokens": 256},
    ),
    "phi3": (_model("Phi3ForCausalLM", "phi3", 3, num_key_value_heads=4, pad_token_id=0), {}),
    "mixtral-moe": (
        _model(
            "MixtralForCausalLM",
            "mixtral",
            2,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        {},
    ),
    "deepseek-mla": (
        _model(
            "DeepseekV2ForCausalLM",
            "deepseek_v2",
            3,
            num_key_value_heads=4,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            first_k_dense_replace=1,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            scoring_func="softmax",
            norm_topk_prob=False,
            routed_scaling_factor=1.0,
        ),
        {},
    ),
    "granite-mamba2": (
        _model(
            "GraniteMoeHybridForCausalLM",
            "granitemoehybrid",
            6,
            layer_types=["mamba", "mamba", "attention", "mamba", "mamba", "attention"],
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=256,
            position_embedding_type="rope",
            **_MAMBA2,
        ),
        {},
    ),
    "qwen3-next": (
        _model(
            "Qwen3NextForCausalLM",
            "qwen3_next",
            4,
            head_dim=64,
            **_GATED_DELTA,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
        ),
        {},
    ),
    "lfm2-conv": (
        _model(
            "Lfm2ForCausalLM",
            "lfm2",
            4,
            layer_types=["conv", "conv", "full_attention", "conv"],
            **_LFM2,
        ),
        {},
    ),
    "lfm2-indices": (
        _model("Lfm2ForCausalLM", "lfm2", 4, full_attn_idxs=[1, 3], **_LFM2),
        {},
    ),
    "cohere2-hybrid": (
        _model(
            "Cohere2ForCausalLM",
            "cohere2",
            8,
            sliding_window=256,
            logit_scale=1.0,
            layer_norm_eps=1e-5,
            pad_token_id=0,
        ),
        {"max_num_batched_tokens": 512},
    ),
    "gpt-oss-hybrid": (
        _model(
            "GptOssForCausalLM",
            "gpt_oss",
            4,
            head_dim=64,
            sliding_window=128,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        {"max_num_batched_tokens": 256},
    ),
    "exaone4-hybrid": (
        _model("Exaone4ForCausalLM", "exaone4", 4, head_dim=32, sliding_window=256, sliding_window_pattern=4),
        {"max_num_batched_tokens": 256},
    ),
    "gemma3n-shared": (
        _model(
            "Gemma3nForCausalLM",
            "gemma3n_text",
            10,
            head_dim=64,
            sliding_window=256,
            num_kv_shared_layers=4,
            intermediate_size=[256] * 10,
            vocab_size_per_layer_input=1040,
            hidden_size_per_layer_input=32,
            laurel_rank=8,
            activation_sparsity_pattern=[0.0] * 10,
        ),
        {"max_num_batched_tokens": 256},
    ),
    "gemma4-two-sizes": (
        _model(
            "Gemma4ForCausalLM",
            "gemma4_text",
            6,
            head_dim=64,
            global_head_dim=128,
            sliding_window=256,
            vocab_size_per_layer_input=1040,
            hidden_size_per_layer_input=32,
        ),
        {"max_num_batched_tokens": 256},
    ),
    "gemma4-shared": (
        _model(
            "Gemma4ForCausalLM",
            "gemma4_text",
            12,
            head_dim=64,
            global_head_dim=128,
            num_kv_shared_layers=6,
            sliding_window=256,
            vocab_size_per_layer_input=1040,
            hidden_size_per_layer_input=32,
        ),
        {"max_num_batched_tokens": 256},
    ),
    "llama4-chunks": (
        _model(
            "Llama4ForCausalLM",
            "llama4_text",
            4,
            head_dim=32,
            attention_chunk_size=256,
            num_local_experts=2,
            num_experts_per_tok=1,
            intermediate_size_mlp=256,
            interleave_moe_layer_step=2,
        ),
        {},
    ),
    "jamba-mamba1": (
        _model(
            "JambaForCausalLM",
            "jamba",
            4,
            attn_layer_period=4,
            attn_layer_offset=2,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            mamba_expand=2,
            mamba_d_state=16,
            mamba_d_conv=4,
            mamba_dt_rank=8,
        ),
        {},
    ),
    "falcon-h1-parallel": (
        _model("FalconH1ForCausalLM", "falcon_h1", 3, head_dim=32, mamba_d_ssm=256, **_MAMBA2),
        {},
    ),
    "mamba1-alone": (
        {
            **_model(
                "MambaForCausalLM", "mamba", 3, state_size=16, conv_kernel=4, expand=2, time_step_rank=8
            ),
            "intermediate_size": 256,
        },
        {},
    ),
    "mamba2-alone": (
        _model(
            "Mamba2ForCausalLM",
            "mamba2",
            3,
            num_heads=8,
            head_dim=32,
            n_groups=1,
            state_size=32,
            conv_kernel=4,
            expand=2,
            chunk_size=64,
        ),
        {},
    ),
    "nemotron-h": (
        _model(
            "NemotronHForCausalLM",
            "nemotron_h",
            4,
            hybrid_override_pattern="M-*M",
            head_dim=32,
            mamba_num_heads=8,
            mamba_head_dim=32,
            n_groups=1,
            ssm_state_size=32,
            conv_kernel=4,
            chunk_size=64,
            mlp_hidden_act="relu2",
        ),
        {},
    ),
    "gemma3-embedding": (
        _model(
            "Gemma3TextModel",
            "gemma3_text",
            4,
            head_dim=64,
            sliding_window=256,
            query_pre_attn_scalar=64,
            use_bidirectional_attention=True,
        ),
        _EMBED,
    ),
    "qwen2-bidirectional": (_model("Qwen2Model", "qwen2", 2, is_causal=False), _EMBED),
    "llama-fp8-cache": (
        _model("LlamaForCausalLM", "llama", 3, rope_theta=10000.0, hidden_size=256, head_dim=64),
        {"kv_cache_dtype": "fp8"},
    ),
    "llama-auto-length": (
        _model("LlamaForCausalLM", "llama", 4, rope_theta=10000.0, max_position_embeddings=131072),
        {"max_model_len": "auto"},
    ),
    "gemma2-auto-length": (
        _model(
            "Gemma2ForCausalLM",
            "gemma2",
            4,
            head_dim=64,
            sliding_window=512,
            query_pre_attn_scalar=64,
            attn_logit_softcapping=None,
            max_position_embeddings=131072,
        ),
        {"max_model_len": "auto", "max_num_batched_tokens": 256},
    ),
    "qwen3-embedding": (_model("Qwen3ForCausalLM", "qwen3", 3, head_dim=32), _EMBED),
    "qwen3-reranker": (
        _model(
            "Qwen3ForSequenceClassification", "qwen3", 2, head_dim=32, num_labels=1, id2label={"0": "yes"}
        ),
        _EMBED | {"max_model_len": 512},
    ),
    "bert-embedder": (
        _model(
            "BertModel",
            "bert",
            2,
            type_vocab_size=2,
            hidden_act="gelu",
            num_key_value_heads=4,
            layer_norm_eps=1e-12,
        ),
        _EMBED,
    ),
    "modernbert-embedder": (
        _model(
            "ModernBertModel",
            "modernbert",
            3,
            local_attention=128,
            global_attn_every_n_layers=3,
            pad_token_id=0,
        ),
        _EMBED,
    ),
}
