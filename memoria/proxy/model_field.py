"""Which model a request names, read from its body; only asked where several engines serve a route.

Like vLLM (pydantic, starlette's forms) a repeated field counts with its last value. A wrong guess would do no
harm: an engine answers 404 to a model that is not its own.
"""

from __future__ import annotations

import json
import re

_SMALL = 64 * 1024  # bytes; up to here the whole document is parsed, which takes less than a millisecond

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
_NESTED = re.compile(rb'[^"\[\]{}]*+')
_QUOTE = ord('"')
_OPENING = b"{["

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*\bboundary=(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.I | re.S
)
_FIELD_NAME = re.compile(rb';\s*name="?model"?\s*(?:;|$)', re.I)
_FILE = re.compile(rb";\s*filename\*?=", re.I)


def from_json(body: bytes) -> str | None:
    """The top-level `model` (None: absent or null). Raises ValueError for what is no JSON object, and for a
    model that is no string.

    A large body is not built into objects: a prompt of many megabytes would hold up every other stream. It is
    walked over key by key instead; what is inside the other values is not checked, the engine does that.
    """
    if len(body) > _SMALL:
        return _scan(body)
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is not an object")  # noqa: TRY004 - a wrong body, not a wrong call
    model = document.get("model")
    if model is None or isinstance(model, str):
        return model
    raise ValueError("`model` is not a string")


def from_form(body: bytes, content_type: bytes) -> str | None:
    """The field `model` of a multipart form. Raises ValueError for what is no such form."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise ValueError("not a multipart form")
    delimiter = b"--" + (found[1] or found[2])
    end = body.find(delimiter)
    if end < 0:
        raise ValueError("the boundary is not in the body")
    model = None
    while True:
        start = end + len(delimiter)
        end = body.find(b"\r\n" + delimiter, start)
        if end < 0:
            return model
        blank = body.find(b"\r\n\r\n", start, end)
        if blank >= 0 and _is_model(body[start:blank]):
            model = body[blank + 4 : end].decode()
        end += 2


def _is_model(head: bytes) -> bool:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _FIELD_NAME.search(value) is not None and _FILE.search(value) is None
    return False


def _scan(body: bytes) -> str | None:
    position = _after_space(body, 0)
    if body[position : position + 1] != b"{":
        raise ValueError("it is not an object in UTF-8")
    model = None
    position = _after_space(body, position + 1)
    if body[position : position + 1] == b"}":
        return None
    while True:
        key_end = _end(_STRING, body, position)
        key = body[position:key_end]
        position = _after_space(body, key_end)
        if body[position : position + 1] != b":":
            raise ValueError("a key without a value")
        start = _after_space(body, position + 1)
        position = _after_value(body, start)
        if key == b'"model"' or (b"\\" in key and _text(key) == "model"):
            model = _model(body[start:position])
        position = _after_space(body, position)
        mark = body[position : position + 1]
        if mark == b"}":
            return model
        if mark != b",":
            raise ValueError("the object does not end")
        position = _after_space(body, position + 1)


def _model(value: bytes) -> str | None:
    if value == b"null":
        return None
    if not value.startswith(b'"'):
        raise ValueError("`model` is not a string")
    return _text(value)


def _text(literal: bytes) -> str:
    return str(json.loads(literal.decode()))


def _after_space(body: bytes, position: int) -> int:
    return _end(_SPACE, body, position)


def _after_value(body: bytes, position: int) -> int:
    first = body[position : position + 1]
    if first == b'"':
        return _end(_STRING, body, position)
    if first not in {b"{", b"["}:
        return _end(_SCALAR, body, position)
    depth = 0
    while True:
        position = _end(_NESTED, body, position)
        if position >= len(body):
            raise ValueError("a value does not end")
        byte = body[position]
        if byte == _QUOTE:
            position = _end(_STRING, body, position)
            continue
        depth += 1 if byte in _OPENING else -1
        position += 1
        if depth == 0:
            return position


def _end(pattern: re.Pattern[bytes], body: bytes, position: int) -> int:
    found = pattern.match(body, position)
    if found is None:
        raise ValueError("not JSON")
    return found.end()
