"""What an engine's `filters` change in a request's JSON body. Without any, no body is parsed for them.

A body that is changed is written anew: the same JSON with other blanks and escapes, and of a field that stood
there twice only the last (which is the one that vLLM would have read). Forms are not changed.
"""

from __future__ import annotations

import json

from memoria.config.model import Filters

__all__ = ["Filters", "apply"]


def apply(body: bytes, filters: Filters) -> bytes:
    """Raises `ValueError` for what is no JSON object: it must not go on unchanged, for an engine may read
    more into it than can be read here."""
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
