"""What an engine's `filters` change in a request's JSON body.

Only the top level is taken apart; values are copied as they are. Of a repeated field only the last is kept,
the one that vLLM would have read. Forms are not changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from memoria.config.model import Filters
from memoria.proxy.routing.model_field import as_utf8

__all__ = ["Filters", "apply"]

# For what only Python's parser reads (lone surrogates, NaN): it makes an object of every value, which blocks
# the event loop for some hundredths of a second at this many.
MOST_VALUES = 200_000

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def apply(body: bytes, filters: Filters) -> bytes:
    """The body with the filters applied. Raises `ValueError` for what is no JSON object: it must not pass
    unchanged, since an engine may read more into it than can be read here."""
    text = as_utf8(body)
    document: dict[str, Any]
    try:
        document = dict(_decode(text))
    except msgspec.ValidationError:
        raise ValueError("it is not an object") from None
    except msgspec.DecodeError:
        return _apply_leniently(text, filters)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _change(document, filters.strip, {field: msgspec.Raw(_encode(v)) for field, v in filters.set.items()})
    return msgspec.json.encode(document)


def _apply_leniently(text: bytes, filters: Filters) -> bytes:
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError("it holds too many values to be changed")
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - a wrong body, not a wrong call
    _change(document, filters.strip, filters.set)
    return _encode(document)


def _change(document: dict[str, Any], strip: Collection[str], put: Mapping[str, Any]) -> None:
    for field in strip:
        document.pop(field, None)
    document.update(put)


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
