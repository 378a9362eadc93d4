"""The header of a safetensors file: eight bytes of length, then JSON. No weight is read.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memoria.plan.checkpoint.model_files import BITS, Tensor

# The format's own limit; a file that claims more is damaged.
LONGEST_HEADER = 100_000_000


class HeaderError(ValueError):
    """A file that is no whole safetensors file; the text is for a person."""


def read_header(path: Path) -> tuple[Tensor, ...]:
    """The tensors of one file. Raises `HeaderError`, and `OSError` where the file cannot be read."""
    with path.open("rb") as file:
        length_bytes = file.read(8)
        if len(length_bytes) < 8:
            raise HeaderError(f"{path.name} is too short for a safetensors file")
        (length,) = struct.unpack("<Q", length_bytes)
        if length > LONGEST_HEADER:
            raise HeaderError(f"{path.name} is no safetensors file")
        text = file.read(length)
        size = path.stat().st_size
    try:
        header = json.loads(text)
        tensors = tuple(_tensor(name, entry) for name, entry in header.items() if name != "__metadata__")
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise HeaderError(f"the header of {path.name} is damaged") from error
    if size < 8 + length + end:
        raise HeaderError(f"{path.name} is cut off: {size} of {8 + length + end} bytes are there")
    return tensors


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in BITS:
        raise ValueError(entry["dtype"])
    return Tensor(name, entry["dtype"], tuple(int(size) for size in entry["shape"]))
