"""How a quantised linear layer is stored, by `quantization_config`, for plans without weight files; and the
size of a layer that vLLM quantises while loading.

Formats: the `create_weights` of the methods in vllm/model_executor/layers/quantization (0.32) and of
compressed_tensors/schemes; names for loading: `_ONLINE_SHORTHANDS` in vllm/config/quantization.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from memoria.plan.checkpoint import Tensor
from memoria.plan.footprint.kv_cache import ceil_div

# `packed`: whole int32 words of weights; `bytes`: one weight, or two halves, to a byte.
_Form = Literal["packed", "bytes"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """Storage of quantised linear layers. A scale is `scale_bits` wide and covers `group` weights of a row; a
    whole row where `group` is 0, a whole matrix where it is None, a square where `block` is set."""

    bits: int
    form: _Form
    dtype: str = "F8_E4M3"  # of weights that take a byte each
    group: int | None = None
    scale_bits: int = 32
    zeros: bool = False
    block: tuple[int, int] | None = None
    experts_only: bool = False
    ignored: tuple[str, ...] = ()

    def tensors(self, name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
        """The tensors of layer `name`. Only their sizes are exact; names and shapes are approximate."""
        if self.form == "packed":
            yield Tensor(f"{name}.qweight", "I32", (ceil_div(inputs * self.bits, 32), outputs))
        elif self.bits == 8:
            yield Tensor(f"{name}.weight", self.dtype, (outputs, inputs))
        else:
            yield Tensor(f"{name}.weight_packed", "U8", (outputs, ceil_div(inputs * self.bits, 8)))
        dtype = {8: "F8_E4M3", 16: "F16", 32: "F32"}[self.scale_bits]
        yield Tensor(f"{name}.weight_scale", dtype, self._scales(outputs, inputs))
        if self.zeros:
            groups = ceil_div(inputs, self.group or inputs)
            yield Tensor(f"{name}.qzeros", "I32", (groups, ceil_div(outputs * self.bits, 32)))

    def _scales(self, outputs: int, inputs: int) -> tuple[int, ...]:
        if self.block is not None:
            return ceil_div(outputs, self.block[0]), ceil_div(inputs, self.block[1])
        if self.group is None:
            return (1,)
        return outputs, ceil_div(inputs, self.group or inputs)

    def covers(self, name: str, *, expert: bool) -> bool:
        return (expert or not self.experts_only) and not any(_matches(name, part) for part in self.ignored)


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """None where nothing is quantised, or by an unsupported method (`unknown_method`)."""
    reader = _READERS.get(method_of(config) or "")
    return reader(config) if reader else None


def method_of(config: Mapping[str, Any]) -> str | None:
    """vLLM's name of the method, with underscores throughout."""
    producer = config.get("producer")
    if isinstance(producer, dict) and producer.get("name") == "modelopt":
        return "modelopt"
    method = config.get("quant_method")
    return str(method).lower().replace("-", "_") if method else None


def unknown_method(config: Mapping[str, Any]) -> str | None:
    """The method, where its storage is not supported for this checkpoint."""
    method = method_of(config)
    return method if method is not None and read_scheme(config) is None else None


def _matches(name: str, part: str) -> bool:
    """How methods match the modules that they skip: by an expression, a pattern, or a part of the name."""
    if part.startswith("re:"):
        return re.match(part[3:], name) is not None
    if "*" in part:
        return fnmatch(name, part)
    # `mlp.gate` is a router, `mlp.gate_proj` is not.
    return f".{part}." in f".{name}."


def _listed(config: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    return tuple(str(part) for key in keys for part in (config.get(key) or ()))


def _fp8(config: Mapping[str, Any]) -> Scheme:
    block = config.get("weight_block_size")
    listed = _listed(config, "ignored_layers", "modules_to_not_convert")
    # vLLM takes these names as they are; an expression here is meant for whole parts of a name, too.
    whole = (rf"{part}(?:\.|$)" if part.startswith("re:") else part for part in listed)
    return Scheme(
        8,
        "bytes",
        block=(int(block[0]), int(block[1])) if block else None,
        ignored=tuple(whole),
    )


def _awq(config: Mapping[str, Any]) -> Scheme:
    return Scheme(
        int(config.get("bits") or config.get("w_bit") or 4),
        "packed",
        group=_group(config.get("group_size") or config.get("q_group_size") or 128),
        scale_bits=16,
        zeros=config.get("zero_point") is not False,
        ignored=_listed(config, "modules_to_not_convert"),
    )


def _gptq(config: Mapping[str, Any]) -> Scheme:
    skipped = tuple(part[2:] for part in (config.get("dynamic") or {}) if part.startswith("-:"))
    return Scheme(
        int(config.get("bits") or 4),
        "packed",
        group=_group(config.get("group_size") or 128),
        scale_bits=16,
        zeros=True,
        ignored=(*(f"re:{part}" for part in skipped), *_listed(config, "modules_to_not_convert")),
    )


def _group(size: Any) -> int:
    """-1 means a whole row."""
    return max(0, int(size))


def _compressed_tensors(config: Mapping[str, Any]) -> Scheme | None:
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    if not isinstance(first, dict) or not isinstance(weights := first.get("weights"), dict):
        return None
    bits, strategy = int(weights.get("num_bits") or 8), str(weights.get("strategy") or "")
    kind, ignored = str(first.get("format") or config.get("format") or ""), _listed(config, "ignore")
    group: int | None = 0 if strategy == "channel" else None
    if strategy in ("group", "tensor_group"):
        group = _group(weights.get("group_size") or 128)
    if weights.get("type") == "float" and bits == 4:
        return Scheme(4, "bytes", group=group or 16, scale_bits=8, ignored=ignored)
    if weights.get("type") == "float" or kind in ("int-quantized", "naive-quantized"):
        block = weights.get("block_structure") if strategy == "block" else None
        squares = (int(block[0]), int(block[1])) if block else None
        dtype = "F8_E4M3" if weights.get("type") == "float" else "I8"
        return Scheme(8, "bytes", dtype, group=group, block=squares, ignored=ignored)
    zeros = weights.get("symmetric") is False
    return Scheme(bits, "packed", group=group, scale_bits=16, zeros=zeros, ignored=ignored)


def _modelopt(config: Mapping[str, Any]) -> Scheme | None:
    inner = config.get("quantization")
    source = inner if isinstance(inner, dict) else config
    algorithm = str(source.get("quant_algo") or "").upper()
    ignored = _listed(source, "exclude_modules", "ignore")
    if algorithm == "NVFP4":
        return Scheme(4, "bytes", group=_group(source.get("group_size") or 16), scale_bits=8, ignored=ignored)
    if algorithm.startswith("FP8"):
        channels = 0 if algorithm == "FP8_PER_CHANNEL_PER_TOKEN" else None
        block = (128, 128) if algorithm == "FP8_PB_WO" else None
        return Scheme(8, "bytes", group=channels, block=block, ignored=ignored)
    return None


def _mxfp4(config: Mapping[str, Any]) -> Scheme:
    """Experts only (gpt-oss)."""
    ignored = _listed(config, "modules_to_not_convert")
    return Scheme(4, "bytes", group=32, scale_bits=8, experts_only=True, ignored=ignored)


def _bitsandbytes(config: Mapping[str, Any]) -> Scheme:
    ignored = _listed(config, "llm_int8_skip_modules")
    if config.get("load_in_8bit"):
        return Scheme(8, "bytes", "I8", group=0, ignored=ignored)
    return Scheme(4, "bytes", group=64, scale_bits=8, ignored=ignored)


_READERS = {
    "awq": _awq,
    "awq_marlin": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed_tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
    "gptq_marlin": _gptq,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
}


@dataclass(frozen=True, slots=True)
class Online:
    """Bytes per weight after quantisation while loading, scales included, in linear layers and in experts.
    None: not quantised. `dtype` is safetensors' name of the resulting type."""

    linear: float | None
    experts: float | None
    dtype: str = "F8_E4M3"


# One scale for a square of 128, or for 32 or 16 weights of a row; those of a row or a matrix are negligible.
_SQUARE = 4 / 128**2
_PER_TENSOR = Online(1.0, 1.0)
ONLINE: Mapping[str, Online] = {
    "fp8": _PER_TENSOR,  # the old spelling (`get_quant_config`, model_executor/model_loader/weight_utils.py)
    "fp8_per_tensor": _PER_TENSOR,
    "fp8_per_block": Online(1.0 + _SQUARE, 1.0 + _SQUARE),
    "fp8_per_channel": Online(1.0, 1.0),
    "mxfp8": Online(1.0 + 1 / 32, 1.0 + 1 / 32),
    "mxfp4": Online(0.5 + 1 / 32, 0.5 + 1 / 32, "U8"),
    "int8_per_channel_weight_only": Online(None, 1.0, "I8"),
    "experts_int8": Online(None, 1.0, "I8"),
    "nvfp4_per_token": Online(None, 0.5 + 1 / 16, "U8"),
}
# What vLLM 0.32 does with `quantization` for an unquantised model.
REMARKS: Mapping[str, str] = {
    "fp8": "`quantization: fp8` is deprecated for an unquantised model: vLLM 0.32 treats it as "
    "fp8_per_tensor, so write that",
}
# For any model.
REFUSED: Mapping[str, str] = {
    "bitsandbytes": "vLLM 0.32 no longer supports bitsandbytes: its start will fail",
}
