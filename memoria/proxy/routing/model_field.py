"""Which model a request names, read from its body; only asked where several engines serve a route.

Like vLLM (pydantic, starlette's forms) a repeated field counts with its last value. A wrong guess would do no
harm: an engine answers 404 to a model that is not its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_SMALL = 64 * 1024  # bytes; up to here the whole document is parsed, which takes less than a millisecond

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
_BETWEEN = re.compile(rb'[^"\[\]{}]*+')  # two brackets or texts
_BRACKETS, _OPENING, _BACKSLASH = b"{[]}", b"{[", ord("\\")

# A walk holds up all that the event loop has to do, so it is a bounded one: some hundredths of a second.
_WORK = 200_000
_CHUNK = 4096  # bytes matched at once
_BYTES = 64  # matched in the time of one step
_PARTS = 1000  # of a form

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*\bboundary=(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.I | re.S
)
_FIELD_NAME = re.compile(rb';\s*name="?model"?\s*(?:;|$)', re.I)
_FILE = re.compile(rb";\s*filename\*?=", re.I)


def from_json(body: bytes) -> str | None:
    """The top-level `model` (None: absent or null). Raises ValueError for what is no JSON object, and for a
    model that is no string.

    A large body is not built into objects: a prompt of many megabytes would hold up every other stream. It is
    walked over key by key instead; what is inside the other values is not checked, the engine does that. That
    ends after a while, by which the model must have come.
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


def _scan(body: bytes) -> str | None:
    walk = _Walk(body)
    model, found = None, False
    try:
        for key, value in walk.members():
            if key == b'"model"' or (b"\\" in key and _text(key) == "model"):
                model, found = _model(value), True
    except ValueError:
        if walk.work > 0:
            raise
    if walk.work <= 0 and not found:
        raise ValueError("`model` comes after too many values, put it first")
    return model


class _Walk:
    """A place in a JSON text, and how much work is left until the walk has been long enough. Then it ends
    anywhere, with an error or without. All methods raise `ValueError` for what is no JSON."""

    def __init__(self, body: bytes) -> None:
        self._body, self.position, self.work = body, 0, _WORK

    def members(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the object that the text is, as they stand there."""
        self.skip(_SPACE)
        if self.mark() != b"{":
            raise ValueError("it is not an object in UTF-8")
        self._step_over_space()
        if self.mark() == b"}":
            return
        while True:
            key = self.text()
            self.skip(_SPACE)
            if self.mark() != b":":
                raise ValueError("a key without a value")
            self._step_over_space()
            start = self.position
            self.value()
            if self.work <= 0:
                return
            yield key, self._body[start : self.position]
            self.skip(_SPACE)
            mark = self.mark()
            if mark == b"}":
                return
            if mark != b",":
                raise ValueError("the object does not end")
            self._step_over_space()

    def _step_over_space(self) -> None:
        self.position += 1
        self.skip(_SPACE)

    def mark(self) -> bytes:
        return self._body[self.position : self.position + 1]

    def skip(self, pattern: re.Pattern[bytes]) -> None:
        """All that it matches, which may be nothing."""
        while self.work > 0:
            found = pattern.match(self._body, self.position, self.position + _CHUNK)
            assert found is not None
            length = found.end() - self.position
            self.position += length
            self.work -= 1 + length // _BYTES
            if length < _CHUNK:
                return

    def text(self) -> bytes:
        """Its literal. A quote belongs to it after an odd number of backslashes."""
        if self.mark() != b'"':
            raise ValueError("a key is not a text")
        start, begin = self.position, self.position + 1
        while True:
            end = self._body.find(b'"', begin)
            if end < 0:
                raise ValueError("a text does not end")
            self.work -= 1
            if self._body[end - 1] != _BACKSLASH or _backslashes(self._body[begin:end]) % 2 == 0:
                break
            begin = end + 1
            if self.work <= 0:
                break
        self.position = end + 1
        return self._body[start : self.position]

    def value(self) -> None:
        first = self.mark()
        if first == b'"':
            self.text()
        elif first in (b"{", b"["):
            self._nested()
        else:
            start = self.position
            self.skip(_SCALAR)
            if self.position == start and self.work > 0:
                raise ValueError("a value is missing")

    def _nested(self) -> None:
        depth = 0
        while self.work > 0:
            mark = self.mark()
            if not mark:
                raise ValueError("a value does not end")
            if mark == b'"':
                self.text()
            elif mark in _BRACKETS:
                self.work -= 1
                self.position += 1
                depth += 1 if mark in _OPENING else -1
                if not depth:
                    return
            else:
                self.skip(_BETWEEN)


def _backslashes(text: bytes) -> int:
    """At its end."""
    return len(text) - len(text.rstrip(b"\\"))


def _model(value: bytes) -> str | None:
    if value == b"null":
        return None
    if not value.startswith(b'"'):
        raise ValueError("`model` is not a string")
    return _text(value)


def _text(literal: bytes) -> str:
    return str(json.loads(literal.decode()))
