"""The tiny models with real weights, and the bytes of the parameters that real vLLM makes of them.

`PYTHON -m tests.vllm.tiny_weights` writes tests/data/weights.json, which the planner's unit tests compare
with. PYTHON is that of the CPU build's environment; transformers, which is in it too, makes the files.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from memoria.checkpoint.headers import read_header
from tests.vllm.tiny_configs import MODELS
from tests.vllm.tiny_models import write_model

RECORDS = Path(__file__).parents[1] / "data" / "weights.json"
_VLLM_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that its loader can be looked into from here
    "VLLM_NO_USAGE_STATS": "1",
}
_KINDS = {
    "CausalLM": "AutoModelForCausalLM",
    "SequenceClassification": "AutoModelForSequenceClassification",
}
# Beside what the models are elsewhere: other types, a head of its own, a vocabulary of no round size.
_OTHER: Mapping[str, Mapping[str, Any]] = {
    "llama": {"torch_dtype": "bfloat16", "tie_word_embeddings": False},
    "qwen3": {"torch_dtype": "bfloat16"},
    "mixtral-moe": {"tie_word_embeddings": False, "vocab_size": 1061},
    "gemma3-hybrid": {"torch_dtype": "bfloat16"},
    "qwen3-embedding": {"torch_dtype": "bfloat16"},
    "deepseek-mla": {"torch_dtype": "bfloat16", "tie_word_embeddings": False},
    "qwen3-next": {"tie_word_embeddings": False},
}


def write_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """A model of this configuration as transformers saves it."""
    torch, transformers = import_module("torch"), import_module("transformers")
    write_model(folder, config)
    read = transformers.AutoConfig.from_pretrained(folder)
    task = config["architectures"][0].rpartition("For")[2]
    kind = getattr(transformers, _KINDS.get(task, "AutoModel"))
    kind.from_config(read, dtype=getattr(torch, config["torch_dtype"])).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def loaded_bytes(folder: Path, *, pooling: bool) -> int:
    """Counted when everything is loaded, before the CPU's kernels pack it anew."""
    loader: Any = import_module("vllm.model_executor.model_loader.base_loader")
    pack, seen = loader.process_weights_after_loading, []

    def count(model: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()))
        return pack(model, *arguments, **named)

    loader.process_weights_after_loading = count
    try:
        import_module("vllm").LLM(
            str(folder),
            runner="pooling" if pooling else "generate",
            enforce_eager=True,
            max_model_len=512,
            kv_cache_memory_bytes=64_000_000,
        )
    finally:
        loader.process_weights_after_loading = pack
        gc.collect()
    return int(seen[0])


def main(names: list[str]) -> None:
    os.environ.update(_VLLM_ENV)
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for name in names or MODELS:
            config, own = MODELS[name]
            config, folder, pooling = {**config, **_OTHER.get(name, {})}, Path(place, name), "runner" in own
            try:
                write_weights(folder, config)
                size = loaded_bytes(folder, pooling=pooling)
                tensors = read_header(folder / "model.safetensors")
            except Exception as error:
                print(name, error, file=sys.stderr)
                continue
            listed = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors]
            records[name] = {"config": config, "pooling": pooling, "loaded_bytes": size, "tensors": listed}
            RECORDS.write_text(_compact(records))
            print(name, size, flush=True)


def _compact(records: Mapping[str, Any]) -> str:
    """A line for a model."""
    lines = (f"{json.dumps(name)}: {json.dumps(record)}" for name, record in sorted(records.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
