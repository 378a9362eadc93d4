"""The models of the memoria.yaml that comes with memoria: what a plan needs of them, where neither the cache
nor the hub says it. As in their config.json, but for keys that decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memoria.plan.checkpoint import SHIPPED, Choice, ModelFiles, overridden

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-Embedding-0.6B": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151669,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen3-4B-Thinking-2507-FP8": {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
}


def shipped_model(model: str, choice: Choice) -> ModelFiles | None:
    """None for any other model, or another revision of it."""
    if model not in CONFIGS or choice.revision not in (None, "main"):
        return None
    return overridden(ModelFiles(model, SHIPPED, CONFIGS[model]), choice)
