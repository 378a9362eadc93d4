"""Whole numbers as vLLM's flags spell them (`human_readable_int`, vllm/utils/argparse_utils.py)."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])?")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def human_int(value: Any) -> int | None:
    """`25g` is 25e9, `25G` is 25 * 2^30. None for nothing, and for what vLLM refuses."""
    match = _NUMBER.fullmatch("" if value is None else str(value).strip())
    if not match:
        return None
    number, decimal_suffix, whole, binary_suffix = match.groups()
    if decimal_suffix:
        return int(float(number) * _DECIMAL[decimal_suffix])
    return int(whole) * (_BINARY[binary_suffix] if binary_suffix else 1)
