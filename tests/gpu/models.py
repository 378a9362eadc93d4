"""Models of the real shapes without weights: the published configurations, a tokenizer as the demo has it.

The vocabulary is filled up to the published size, so that the weights and every sampled token are as in life.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.demo_models import tokenizer, tokenizer_config

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 3,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

# huggingface.co/Qwen/Qwen3-Embedding-0.6B and Qwen/Qwen3-4B-Thinking-2507, config.json
SHAPES: dict[str, dict[str, Any]] = {
    "embedding": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "vocab_size": 151669,
    },
    "generation": _QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "max_position_embeddings": 262144,
        "rope_theta": 5000000,
        "vocab_size": 151936,
    },
}


def write_models(folder: Path) -> None:
    """`folder/embedding` and `folder/generation`."""
    for name, shape in SHAPES.items():
        path = folder / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(shape, indent=2))
        (path / "tokenizer.json").write_text(json.dumps(_filled(shape["vocab_size"])))
        config = tokenizer_config() | {"model_max_length": shape["max_position_embeddings"]}
        (path / "tokenizer_config.json").write_text(json.dumps(config))


def _filled(size: int) -> dict[str, Any]:
    """A token that no text is made of costs more than any other."""
    made = tokenizer()
    vocabulary = made["model"]["vocab"]
    vocabulary += [(f" filler{number}", -100.0) for number in range(len(vocabulary), size)]
    return made
