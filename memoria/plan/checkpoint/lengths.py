"""How long a text may be, as the small files beside a configuration say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOKENIZER = "tokenizer_config.json"
SENTENCE = "sentence_bert_config.json"


def tokenizer_length(tokenizer: Mapping[str, Any] | None) -> int | None:
    """Tokens, by the tokenizer's file; None where it is not there, or knows no limit."""
    return whole((tokenizer or {}).get("model_max_length"))


def encoder_length(sentence: Mapping[str, Any] | None) -> int | None:
    """Tokens, by the file of a sentence encoder."""
    return whole((sentence or {}).get("max_seq_length"))


def whole(value: Any) -> int | None:
    # A tokenizer without a limit says 1e30.
    return int(value) if isinstance(value, int | float) and 0 < value < 10**15 else None
