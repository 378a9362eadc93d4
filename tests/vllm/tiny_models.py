"""Tiny models of many architectures, with the demo's tokenizer and no weights, and what real vLLM says of
them.

`python -m tests.vllm.tiny_models PYTHON` starts real vLLM for each and writes tests/data/kv_cache.json, which
the planner's unit tests compare with. PYTHON is that of the CPU build's environment.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memoria.demo.make_models import tokenizer, tokenizer_config

RECORDS = Path(__file__).parents[1] / "data" / "kv_cache.json"
_KV = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x"
)
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
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
            linear_conv_kernel_dim=4,
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
            conv_dim=128,
            conv_L_cache=3,
            conv_bias=False,
            block_dim=128,
            block_ff_dim=256,
            block_multiple_of=32,
            block_ffn_dim_multiplier=1.0,
            block_auto_adjust_ff_dim=False,
        ),
        {},
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
COMMON: Mapping[str, Any] = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64_000_000}


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config()))


def flags(own: Mapping[str, Any]) -> dict[str, Any]:
    return {**COMMON, **{name: value for name, value in own.items() if name != "runner"}}


@contextmanager
def started(python: str, folder: Path, own: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """vLLM's API server with its log as standard output; killed at the end with all its processes."""
    arguments = []
    for name, value in flags(own).items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--load-format",
        "dummy",
    ]
    command += [
        "--runner",
        own.get("runner", "generate"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *arguments,
    ]
    process = subprocess.Popen(
        ["setsid", "-w", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": f"{Path(python).parent}:/usr/bin:/bin",
            "HOME": str(Path.home()),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
    )
    try:
        yield process
    finally:
        for child in _session_of(process.pid):
            subprocess.run(["kill", "-9", "--", f"-{child}"], check=False, stderr=subprocess.DEVNULL)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def logged(process: subprocess.Popen[str]) -> tuple[dict[str, Any], list[str]]:
    """The KV cache that vLLM logs until it listens; empty for a model without one. The log beside it."""
    log, said = [], {}
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line.rstrip())
        if match := _KV.search(line):
            tokens, length, concurrency = (text.replace(",", "") for text in match.groups())
            said = {"tokens": int(tokens), "max_model_len": int(length), "concurrency": float(concurrency)}
        if "Application startup complete" in line:
            return said, log
    raise AssertionError("vLLM did not start:\n" + "\n".join(log[-60:]))


def _session_of(pid: int) -> list[str]:
    """The process group that `setsid` made for its child."""
    return subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()


def main(python: str, names: list[str]) -> None:
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for name in names or MODELS:
            config, own = MODELS[name]
            write_model(Path(place, name), config)
            with started(python, Path(place, name), own) as process:
                try:
                    said, _ = logged(process)
                except AssertionError as error:
                    print(name, error)
                    continue
            records[name] = {
                "config": config,
                "flags": flags(own),
                "pooling": own == _EMBED or "runner" in own,
                **said,
            }
            RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
            print(name, said, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
