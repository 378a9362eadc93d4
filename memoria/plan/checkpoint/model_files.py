"""Facts from a model's files, without its weights: the configuration, tensor headers and length limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

# Bits of an element, by the names in a safetensors header (https://github.com/huggingface/safetensors).
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
TOKENIZER = "tokenizer_config.json"
SENTENCE = "sentence_bert_config.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        return (self.parameters * BITS[self.dtype] + 7) // 8


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of a model that an engine's flags choose (vllm/config/model.py, vllm/config/load.py).

    `revision` is a branch, a tag or a commit of a hub model; `download_dir` is a hub cache for its weights;
    `overrides` (`hf_overrides`) replace parts of config.json.
    """

    revision: str | None = None
    download_dir: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`tensors` is empty if no header could be read; `index_bytes` is then the index's size of all weights
    (`metadata.total_size`), or None, and `missing` are weights files absent from a set that is partly there.
    The lengths, in tokens, are limits of the context from files beside config.json: the tokenizer's
    `model_max_length`, and sentence-transformers' `max_seq_length`."""

    name: str
    source: str  # where they were found, for messages
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...] = ()
    index_bytes: int | None = None
    tokenizer_length: int | None = None
    encoder_length: int | None = None
    missing: tuple[str, ...] = ()

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.stored_bytes for tensor in self.tensors)


def tokenizer_length(tokenizer: Mapping[str, Any] | None) -> int | None:
    """Tokens, from tokenizer_config.json; None if it is absent or sets no limit."""
    return whole((tokenizer or {}).get("model_max_length"))


def encoder_length(sentence: Mapping[str, Any] | None) -> int | None:
    """Tokens, from a sentence encoder's file."""
    return whole((sentence or {}).get("max_seq_length"))


def whole(value: Any) -> int | None:
    # A tokenizer without a limit says 1e30.
    return int(value) if isinstance(value, int | float) and 0 < value < 10**15 else None
