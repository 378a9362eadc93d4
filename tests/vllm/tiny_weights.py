"""The tiny models with real weights, some of them quantised, and the bytes of the parameters that real vLLM
makes of them.

`PYTHON -m tests.vllm.tiny_weights` writes tests/data/weights.json, which the planner's unit tests compare
with; names of models after it choose some. PYTHON is that of the CPU build's environment; transformers, which
is in it too, makes the files. Exits with 1 where a model cannot be made or loaded.
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

from memoria.plan.checkpoint import read_header
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
    "qwen3-fp8": {"torch_dtype": "bfloat16"},
    "llama": {"torch_dtype": "bfloat16", "tie_word_embeddings": False},
    "qwen3": {"torch_dtype": "bfloat16"},
    "mixtral-moe": {"tie_word_embeddings": False, "vocab_size": 1061},
    "gemma3-hybrid": {"torch_dtype": "bfloat16"},
    "qwen3-embedding": {"torch_dtype": "bfloat16"},
    "deepseek-mla": {"torch_dtype": "bfloat16", "tie_word_embeddings": False},
    "jamba-mamba1": {"tie_word_embeddings": False},
    "qwen3-next": {"tie_word_embeddings": False},
}


def _compressed(bits: int, form: str, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": False,
        **more,
    }
    inputs = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"weights": weights, "targets": ["Linear"], "input_activations": inputs if bits == 8 else None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


# What linear layers are stored as: of the tiny Llama, and where a name begins so, of the tiny Qwen3, which is
# what the default file's generation model is.
_QUANTISED: Mapping[str, Mapping[str, Any]] = {
    "qwen3-fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    "llama-int8": _compressed(8, "int-quantized", "channel"),
    "llama-w4a16": _compressed(4, "pack-quantized", "group", group_size=32),
    "llama-awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "llama-gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
}


def quantise(folder: Path, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> None:
    """Puts random weights of the method's own form in the place of every linear layer's."""
    torch, safetensors = import_module("torch"), import_module("safetensors.torch")
    stored = safetensors.load_file(folder / "model.safetensors")
    made: dict[str, Any] = {}

    def integers(dtype: str, *shape: int) -> Any:
        return torch.randint(-100, 100, shape).to(getattr(torch, dtype))

    for name, tensor in stored.items():
        if not name.endswith("_proj.weight"):
            made[name] = tensor
            continue
        layer, (outputs, inputs) = name.removesuffix(".weight"), tensor.shape
        match quantization["quant_method"], quantization.get("format"):
            case "compressed-tensors", "int-quantized":
                made[name] = integers("int8", outputs, inputs)
                made[f"{layer}.weight_scale"] = torch.rand(outputs, 1).to(tensor.dtype)
            case "compressed-tensors", _:
                made[f"{layer}.weight_packed"] = integers("int32", outputs, inputs // 8)
                made[f"{layer}.weight_scale"] = torch.rand(outputs, inputs // 32).to(tensor.dtype)
                made[f"{layer}.weight_shape"] = torch.tensor([outputs, inputs])
            case "fp8", _:
                made[name] = (torch.randn(outputs, inputs) * 0.1).to(torch.float8_e4m3fn)
                rows, columns = quantization["weight_block_size"]
                scales = torch.rand(-(-outputs // rows), -(-inputs // columns))
                made[f"{layer}.weight_scale_inv"] = scales.to(tensor.dtype)
            case "awq", _:
                made[f"{layer}.qweight"] = integers("int32", inputs, outputs // 8)
                made[f"{layer}.qzeros"] = integers("int32", inputs // 32, outputs // 8)
                made[f"{layer}.scales"] = torch.rand(inputs // 32, outputs).half()
            case _:
                made[f"{layer}.qweight"] = integers("int32", inputs // 8, outputs)
                made[f"{layer}.qzeros"] = integers("int32", inputs // 32, outputs // 8)
                made[f"{layer}.scales"] = torch.rand(inputs // 32, outputs).half()
                made[f"{layer}.g_idx"] = (torch.arange(inputs) // 32).int()
    safetensors.save_file(made, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


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
    # The one kernel of a CPU for blocks of fp8 needs AMX; the parameters are made and loaded before it works.
    kernels: Any = import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    kernels.CPUFp8BlockScaledMMKernel.is_supported = classmethod(lambda *_: (True, None))

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


def main(names: list[str]) -> int:
    os.environ.update(_VLLM_ENV)
    version = import_module("vllm").__version__
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as place:
        for name in names or (*MODELS, *_QUANTISED):
            quantization = _QUANTISED.get(name)
            config, own = MODELS[name.split("-")[0] if quantization else name]
            config, folder, pooling = {**config, **_OTHER.get(name, {})}, Path(place, name), "runner" in own
            try:
                write_weights(folder, config)
                if quantization:
                    quantise(folder, config, quantization)
                    config["quantization_config"] = quantization
                size = loaded_bytes(folder, pooling=pooling)
                tensors = read_header(folder / "model.safetensors")
            except Exception as error:
                print(name, error, file=sys.stderr)
                failed.append(name)
                continue
            listed = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors]
            records[name] = {"config": config, "pooling": pooling, "loaded_bytes": size, "tensors": listed}
            records[name]["vllm"] = version
            RECORDS.write_text(_compact(records))
            print(name, size, flush=True)
    if failed:
        print("not loaded:", *failed, file=sys.stderr)
    return 1 if failed else 0


def _compact(records: Mapping[str, Any]) -> str:
    """A line for a model."""
    lines = (f"{json.dumps(name)}: {json.dumps(record)}" for name, record in sorted(records.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
