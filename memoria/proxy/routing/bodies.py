"""What memoria reads and changes in request bodies: the model, where several engines serve a route, and the
fields of an engine's `filters`.

Like vLLM (pydantic, starlette's forms), the last value of a repeated field counts. Only syntax and `model`
are checked; the engine checks the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from memoria.config.model import Filters

# Reading blocks the event loop: about 1 ms per MiB of text and 10 ns per value. What would take longer than
# some hundredths of a second is refused.
COUNTED_BYTES = 8 * 2**20
MOST_VALUES = 4_000_000

# What `json.loads`, and so vLLM, reads beyond RFC 8259. Replaced inside strings too: only `model` is kept,
# and no engine's name holds either.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w)\\u[dD][c-fC-F]\w\w"
)
_NOT_FINITE = re.compile(rb"(?<=[\[:,\s])(?:NaN|-?Infinity)(?=[\],}\s])")
# For what only Python's parser reads in a body with filters (lone surrogates, NaN): it makes an object of
# every value.
MOST_LENIENT_VALUES = 200_000
_PARTS = 2000  # of a form, as many as starlette takes (1000 fields and 1000 files)

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*\bboundary=(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.I | re.S
)
_FIELD_NAME = re.compile(rb';\s*name="?model"?\s*(?:;|$)', re.I)
_FILE = re.compile(rb";\s*filename\*?=", re.I)


class _Request(msgspec.Struct):
    model: str | None = None


_decode_model = msgspec.json.Decoder(_Request).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def model_in_json(body: bytes) -> str | None:
    """The top-level `model`; None where it is absent or null. Raises `ValueError` for what is no JSON object,
    and for a model that is no string."""
    text = as_utf8(body)
    try:
        return _model_in(text)
    except msgspec.ValidationError as error:
        what = "`model` is not a string" if "$.model" in str(error) else "it is not an object"
        raise ValueError(what) from None
    except msgspec.DecodeError:
        return _model_in(_NOT_FINITE.sub(b"0", _LONE_SURROGATE.sub(rb"\\ufffd", text)))


def _model_in(text: bytes) -> str | None:
    try:
        return _decode_model(text).model
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_utf8(body: bytes) -> bytes:
    """A JSON text in UTF-8 without a byte-order mark, whatever Unicode encoding it came in (as for
    `json.loads`, which vLLM uses). Raises `ValueError`, also for a text that would take too long to read."""
    if len(body) > COUNTED_BYTES and sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values")
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    return body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


# python-multipart reads the heads of parts byte by byte in Python, which takes seconds where many are large.
def model_in_form(body: bytes, content_type: bytes) -> str | None:
    """The field `model` of a multipart form (RFC 7578). Raises `ValueError` for what is no such form."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise ValueError("not a multipart form")
    delimiter = b"--" + (found[1] or found[2])
    end = body.find(delimiter)
    if end < 0:
        raise ValueError("the boundary is not in the body")
    model = None
    for _ in range(_PARTS):
        start = end + len(delimiter)
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            return model
        blank = body.find(b"\r\n\r\n", start, end)
        if blank >= 0 and _is_model(body[start:blank]):
            model = body[blank + 4 : end].decode()
        end += 2
    raise ValueError(f"it has more than {_PARTS} parts")


def _is_model(head: bytes) -> bool:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _FIELD_NAME.search(value) is not None and _FILE.search(value) is None
    return False


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


def _apply_leniently(text: bytes, filters: Filters) -> bytes:
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_LENIENT_VALUES:
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
