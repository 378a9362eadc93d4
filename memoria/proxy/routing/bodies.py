"""What memoria reads and changes in request bodies: the model, where several engines serve a route, and the
fields of an engine's `filters`.

Like vLLM (pydantic, starlette's forms), the last value of a repeated field counts. Only syntax and `model`
are checked; the engine checks the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from memoria.config.model import Filters
from memoria.proxy.routing.scan import FormScan, JsonScan

AT_ONCE = 256 * 1024  # bytes; a larger body is read as it comes (`Scan`), not to hold up the event loop


class _Request(msgspec.Struct):
    model: str | None = None


_decode_model = msgspec.json.Decoder(_Request).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def model_in_json(body: bytes) -> str | None:
    """The top-level `model`; None where it is absent or null. Raises `ValueError` for what is no JSON object,
    and for a model that is no string."""
    text = as_utf8(body)
    try:
        try:
            return _decode_model(text).model
        except msgspec.ValidationError as error:
            what = "`model` is not a string" if "$.model" in str(error) else "it is not an object"
            raise ValueError(what) from None
        except msgspec.DecodeError:  # lone surrogates and NaN, which vLLM's parser reads
            return _checked(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _checked(document: object) -> str | None:
    if not isinstance(document, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - a wrong body, not a wrong call
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        raise ValueError("`model` is not a string")
    return model


def as_utf8(body: bytes) -> bytes:
    """A JSON text in UTF-8 without a byte-order mark, whatever Unicode encoding it came in (as for
    `json.loads`, which vLLM uses)."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    return body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


def model_in_form(body: bytes, content_type: bytes) -> str | None:
    """The field `model` of a multipart form (RFC 7578). Raises `ValueError` for what is no such form."""
    scan = FormScan(content_type)
    scan.feed(body)
    scan.advance(math.inf)
    return scan.model()


def apply_filters(body: bytes, filters: Filters) -> bytes:
    """The body with the filters applied. Only the top level is taken apart; values are copied as they are. Of
    a repeated field only the last is kept, the one that vLLM would have read. Raises `ValueError` for what is
    no JSON object: it must not pass unchanged, since an engine may read more into it than can be read
    here."""
    text = as_utf8(body)
    document: dict[str, Any]
    try:
        document = dict(_decode_fields(text))
    except msgspec.ValidationError:
        raise ValueError("it is not an object") from None
    except msgspec.DecodeError:
        return _apply_leniently(text, filters)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _change(document, filters.strip, {field: msgspec.Raw(_encode(v)) for field, v in filters.set.items()})
    return msgspec.json.encode(document)


def apply_to_large(pieces: list[bytes], scan: JsonScan, filters: Filters) -> list[bytes]:
    """As `apply_filters`, for a body that was scanned. Repeated fields stay where they are not changed."""
    members = [_encode(field) + b":" + _encode(value) for field, value in filters.set.items()]
    return scan.apply(filters, pieces, members)


def _apply_leniently(text: bytes, filters: Filters) -> bytes:
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
