"""A large body, read as it comes: at once, it would hold up the event loop.

A scan takes a piece in a time that follows its length, some milliseconds for the largest read whatever is in
it, and keeps none of it. It tells apart no more than it must: what is no JSON or no form is the engine's to
refuse, and in what an engine can read it finds what the engine finds, the last of a repeated field.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from memoria.config.model import Filters

SHORTEST_START = 4  # bytes of a text that tell its encoding
_SLICE = 16 * 1024  # bytes
_LONGEST_KEY = 512  # bytes of a key that is looked for, with every character as an escape
_LONGEST_VALUE = 8 * 1024  # bytes that are kept of a model's name
_LONGEST_HEAD = 16 * 1024  # bytes that are read of the head of a form's part
_MOST_PARTS = 2000  # as many as starlette takes (1000 fields and 1000 files)
_MOST_FOUND = 256  # members; a body repeats none
_ROUNDS = 8  # most brackets in one another are paired by then

_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.S)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[{]|[\]}]|[:,]', re.S)
_BLANK = b" \t\r\n"
# RFC 8259 7: what is never itself in a string, and the slash, which may be.
_SHORT = {'"': r'\\"', "\\": r"\\\\", "/": r"\\?/"} | {
    char: r"\\" + letter for char, letter in zip("\b\f\n\r\t", "bfnrt", strict=True)
}
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*\bboundary=(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.I | re.S
)
_FIELD_NAME = re.compile(rb';\s*name="?model"?\s*(?:;|$)', re.I)
_FILE = re.compile(rb";\s*filename\*?=", re.I)


class Scan(ABC):
    """Of one body. `feed` it, then `advance` until that returns True."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._reading: Iterator[None] | None = None  # of a piece

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)

    @property
    def kept(self) -> Iterable[bytes]:
        """Text that it holds."""
        return self._pieces

    def advance(self, seconds: float = 0.005) -> bool:
        """Works for about so long. Whether all that came has been read."""
        until = time.perf_counter() + seconds
        while self._reading or self._pieces:
            self._reading = self._reading or self._read(self._pieces.popleft())
            for _ in self._reading:
                if time.perf_counter() >= until:
                    return False
            self._reading = None
        return True

    @abstractmethod
    def _read(self, piece: bytes) -> Iterator[None]:
        """Yields about every millisecond."""

    @abstractmethod
    def model(self) -> str | None:
        """Of a complete body, None without one. Raises `ValueError` for what is no JSON object or form, and
        for a model that is no string."""


class _Member(NamedTuple):
    """`start`: of its key; `comma_end`: behind what comes before; `end`: behind its own comma."""

    name: str
    start: int
    comma_end: int
    end: int


class JsonScan(Scan):
    """Finds the top-level members that have one of `names`, by strings and brackets alone."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = {"model", *names}
        either = "|".join("".join(map(_in_any_spelling, name)) for name in self.names)
        self._is_wanted = re.compile(f"(?:{either})".encode(), re.S)
        self._has_wanted = re.compile(f'"(?:{either})"'.encode(), re.S)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._recoded: list[bytes] = []  # the text in UTF-8, where it came in another encoding
        self._begun = self._problem = ""
        self._at = 0  # place of the next byte to be scanned
        self._rest = b""  # before the next piece: the beginning of what may be a key
        self._object_at: int | None = None
        self._depth = 0
        self._in_string = self._escaped = False
        self._key: tuple[bytes, int, int] | None = None  # a string where keys are, its place, `_comma_end`
        self._open: tuple[str, int, int] | None = None  # the member whose value is being read
        self._value: bytearray | None = None  # of an open `model`
        self._model: bytes | None = None
        self._found: list[_Member] = []
        self._solid_end = 0  # place behind the last byte that is not blank
        self._has_members = False
        self._end = -1  # place of the bracket that ends the object

    @property
    def kept(self) -> Iterable[bytes]:
        return (*self._pieces, *self._recoded)

    def _read(self, piece: bytes) -> Iterator[None]:
        if not self._begun:
            self._begun = json.detect_encoding(piece)
            if self._begun not in {"utf-8", "utf-8-sig"}:
                self._decoder = codecs.getincrementaldecoder(self._begun)("surrogatepass")
        if self._decoder is not None:
            try:
                piece = self._decoder.decode(piece).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                self._problem = self._problem or "it is no text"
            self._recoded.append(piece)
        text = self._rest + piece
        self._rest = b""
        place = 0
        if self._object_at is None:
            place = self._begin(text)
        while place < len(text) and self._depth and not self._problem:
            if self._in_string:
                taken = self._end_string(text, place)
            else:
                part = text[place : place + _SLICE]
                taken = self._skip(part) or self._walk(part)
                if taken < len(part) and place + len(part) == len(text):
                    self._note_solid(text, place, place + taken)
                    self._at += taken
                    self._rest = text[place + taken :]
                    return
            self._note_solid(text, place, place + taken)
            self._at += taken
            place += taken
            yield

    def _note_solid(self, text: bytes, start: int, end: int) -> None:
        """This much of it is scanned."""
        if text[end - 1 : end] in _BLANK and not self._in_string:
            end = start + len(text[start:end].rstrip(_BLANK))
        if end > start:
            self._solid_end = self._at + end - start

    def _begin(self, text: bytes) -> int:
        place = len(text) - len(text.lstrip(b"\xef\xbb\xbf" + _BLANK))
        if place < len(text):
            self._object_at, self._depth = self._at + place, 1
            if text[place] != ord("{"):
                self._problem = "it is not an object"
            place += 1
        self._at += place
        self._solid_end = self._at
        return place

    def _end_string(self, text: bytes, start: int) -> int:
        """Goes to the end of a string that began before."""
        place = start + self._escaped
        end = text.find(b'"', place)
        end = len(text) if end < 0 else end
        if (escape := text.find(b"\\", place, end)) >= 0:
            found = _REST_OF_STRING.match(text, escape)
            end = len(text) if found is None else found.end()
        self._escaped = text[end : end + 1] == b"\\"  # and nothing behind
        self._in_string = text[end : end + 1] != b'"'
        taken = min(end + 1, len(text)) - start
        self._keep_value(text[start : start + min(taken, _LONGEST_VALUE)])
        return taken

    def _begin_string(self, part: bytes, start: int) -> int:
        """Takes what there is of a string without its end; nothing of what may be a key."""
        if self._depth == 1 and len(part) - start <= _LONGEST_KEY:
            return start
        return self._enter_string(part)

    def _enter_string(self, part: bytes) -> int:
        self._key, self._in_string, self._has_members = None, True, True
        self._escaped = (len(part) - len(part.rstrip(b"\\"))) % 2 == 1
        return len(part)

    def _skip(self, part: bytes) -> int:
        """Takes all of it, without a look at every token, if no wanted member begins or ends in it. 0: no."""
        strings = part.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        brackets = b"".join(strings[::2]).translate(_TO_SQUARE, _NO_BRACKETS)
        for _ in range(_ROUNDS):  # what is left closes first, then opens
            brackets = brackets.replace(b"[]", b"")
        closing = brackets.count(b"]")
        lowest = self._depth - closing
        if lowest < 1:
            return 0
        if lowest == 1 and (self._open or self._key or self._has_wanted.search(part)):
            return 0
        depth, start = lowest + len(brackets) - closing, part.rfind(b'"')
        is_open = len(strings) % 2 == 0
        if is_open and depth == 1 and part[start - 1 : start] == b"\\":
            return 0  # it may begin a wanted key, before
        self._depth, self._key = depth, None
        self._has_members |= len(strings) > 1
        return self._begin_string(part, start) if is_open else len(part)

    def _walk(self, part: bytes) -> int:
        """Takes it token by token."""
        depth, at, value_at = self._depth, self._at, 0
        comma_end = self._solid_end  # or behind the bracket that begins the object
        taken = len(part)
        for token in _TOKEN.finditer(part):
            start = token.start()
            kind = part[start]
            if kind == 0x22:  # "
                if not token[1]:
                    self._depth = depth
                    taken = self._begin_string(part, start)
                    break
                if depth == 1:
                    self._key = (part[start + 1 : token.end() - 1], at + start, comma_end)
                    self._has_members = True
            elif kind == 0x7B or kind == 0x5B:  # noqa: PLR1714 - { [: faster so
                depth += 1
            elif kind == 0x7D or kind == 0x5D:  # noqa: PLR1714 - } ]
                depth -= 1
                if not depth:
                    self._end = at + start
                    self._close(part[value_at:start], self._end)
                    break
            elif depth == 1 and kind == 0x3A:  # :
                if self._key is not None and self._opens(*self._key):
                    value_at = token.end()
            elif depth == 1:  # ,
                self._key, comma_end = None, at + token.end()
                self._close(part[value_at:start], comma_end)
                if self._problem:
                    break
        self._depth = depth
        if depth:
            self._keep_value(part[value_at:taken])
        return taken

    def _opens(self, key: bytes, at: int, comma_end: int) -> bool:
        """Whether it is a wanted member that begins at this key."""
        self._key = None
        if not self._is_wanted.fullmatch(key):
            return False
        name = json.loads(b'"%b"' % key) if b"\\" in key else key.decode()
        self._open = (name, at, comma_end)
        self._value = bytearray() if name == "model" else None
        return True

    def _keep_value(self, text: bytes) -> None:
        if self._value is not None and len(self._value) < _LONGEST_VALUE:
            self._value += text[:_LONGEST_VALUE]

    def _close(self, text: bytes, end: int) -> None:
        """Ends the open member, if there is one, with `text` and at this place."""
        if self._open is None:
            return
        self._keep_value(text)
        self._found.append(_Member(*self._open, end))
        if len(self._found) > _MOST_FOUND:
            self._problem = "it repeats a field too often"
        if self._value is not None:
            self._model = bytes(self._value)
        self._open = self._value = None

    def model(self) -> str | None:
        self._raise_for_problem()
        if self._model is None:
            return None
        raw = self._model.strip(_BLANK)
        if len(raw) >= _LONGEST_VALUE and raw.startswith(b'"'):
            return raw[1:_LONGEST_KEY].decode("utf-8", "replace")  # no engine's name
        try:
            value = json.loads(raw)
        except ValueError:
            value = 0
        if value is not None and not isinstance(value, str):
            raise ValueError("`model` is not a string")
        return value

    def _raise_for_problem(self) -> None:
        if self._problem:
            raise ValueError(self._problem)
        if self._object_at is None or self._depth:
            raise ValueError("it is no JSON, or not complete")

    def apply(self, filters: Filters, pieces: list[bytes], put: Iterable[bytes]) -> list[bytes]:
        """The complete body of `pieces` with the filters applied: `put` has the members that are set. Raises
        `ValueError`."""
        self._raise_for_problem()
        assert self._object_at is not None
        text, begin = self._recoded or pieces, self._object_at + 1
        fields = {*filters.strip, *filters.set}
        gone = [member for member in self._found if member.name in fields]
        end = self._end
        while gone and gone[-1].end == end:
            end = gone.pop().comma_end
        ranges = [(member.start, member.end) for member in gone]
        if end == self._end:
            kept = _cut(text, begin, math.inf, ranges)
        else:  # the last ones are gone, and with them the comma before
            kept = [*_cut(text, begin, max(begin, end - 1), ranges), *_cut(text, self._end, math.inf)]
        members, more = b",".join(put), self._has_members and end > begin
        return [b"{" + members + (b"," if members and more else b""), *kept]


def _in_any_spelling(char: str) -> str:
    """A pattern of the character in a JSON string: itself, or as an escape."""
    units = char.encode("utf-16-be", "surrogatepass")
    escape = "".join(f"\\\\u(?i:{units[i : i + 2].hex()})" for i in range(0, len(units), 2))
    itself = _SHORT.get(char, re.escape(char))
    return f"(?:{itself}|{escape})"


def _cut(pieces: list[bytes], start: int, end: float, gone: Sequence[tuple[int, int]] = ()) -> list[bytes]:
    """The bytes from `start` to `end` without those that are gone."""
    kept, place = [], 0
    ranges = deque([(0, start), *gone, (end, math.inf)])
    for piece in pieces:
        begun = 0
        while ranges and ranges[0][0] < place + len(piece):
            first, behind = ranges[0]
            kept.append(piece[begun : max(begun, int(first) - place)])
            begun = int(min(behind - place, len(piece)))
            if behind > place + len(piece):
                break
            ranges.popleft()
        kept.append(piece[begun:])
        place += len(piece)
    return [piece for piece in kept if piece]


# python-multipart reads the heads of parts byte by byte in Python, which takes seconds where many are large.
class FormScan(Scan):
    """Finds the field `model` of a multipart form (RFC 7578). Raises `ValueError` for another type."""

    def __init__(self, content_type: bytes) -> None:
        super().__init__()
        found = _BOUNDARY.match(content_type)
        if found is None:
            raise ValueError("not a multipart form")
        self._delimiter = b"--" + (found[1] or found[2])
        self._rest = b""
        self._parts = 0
        self._head: bytearray | None = None  # of the part, while it is being read
        self._value: bytearray | None = None  # of a field `model`, while it is being read
        self._model: bytes | None = None

    def _read(self, piece: bytes) -> Iterator[None]:
        text, place = self._rest + piece, 0
        while self._parts <= _MOST_PARTS:
            mark = self._delimiter if not self._parts else b"\r\n" + self._delimiter
            if self._head is not None:
                mark = b"\r\n\r\n"
            end = text.find(mark, place)
            upto = max(place, len(text) - len(mark) + 1) if end < 0 else end
            self._take(text[place:upto])
            place = upto
            if end < 0:
                break
            place += len(mark)
            self._turn()
            yield
        self._rest = text[place:]

    def _take(self, text: bytes) -> None:
        if self._head is not None:
            self._head += text[: max(0, _LONGEST_HEAD - len(self._head))]
        elif self._value is not None:
            self._value += text[: max(0, _LONGEST_VALUE - len(self._value))]

    def _turn(self) -> None:
        """Goes from a part's head to its body, or from there to the next part."""
        if self._head is None:
            if self._value is not None:
                self._model = bytes(self._value)
            self._value, self._head = None, bytearray()
            self._parts += 1
        else:
            self._value = bytearray() if _is_model(bytes(self._head)) else None
            self._head = None

    def model(self) -> str | None:
        if not self._parts:
            raise ValueError("the boundary is not in the body")
        if self._parts > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS} parts")
        return None if self._model is None else self._model.decode()


def _is_model(head: bytes) -> bool:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _FIELD_NAME.search(value) is not None and _FILE.search(value) is None
    return False
