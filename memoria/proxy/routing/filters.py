"""What an engine's `filters` change in a request's JSON body. Without any, no body is parsed for them.

A body that is changed is written anew: the same JSON with other blanks and escapes, and of a field that stood
there twice only the last (which is the one that vLLM would have read). Forms are not changed.
"""

from __future__ import annotations

import json

from memoria.config.model import Filters

__all__ = ["Filters", "apply"]

# Objects are made of all of them, and meanwhile the event loop does nothing else: for some hundredths of a
# second.
MOST_VALUES = 200_000


def apply(body: bytes, filters: Filters) -> bytes:
    """Raises `ValueError` for what is no JSON object: it must not go on unchanged, for an engine may read
    more into it than can be read here. So is what holds more than about `MOST_VALUES` values."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError("it holds too many values to be changed")
    try:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("it is not an object")  # noqa: TRY004 - a wrong body, not a wrong call
        for field in filters.strip:
            document.pop(field, None)
        document.update(filters.set)
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
