"""A head that came before: known again by its bytes, so that it is parsed once.

Clients and engines repeat themselves: of one connection's heads, most differ in their Content-Length alone.
"""

from __future__ import annotations

import re
from typing import Generic, Self, TypeVar

Meaning = TypeVar("Meaning")

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_DIGITS = 9
_LONGEST = 4096  # bytes of a head; longer ones are not kept
_END = b"\r\n\r\n"


class HeadCache(Generic[Meaning]):
    """`meaning` is what a parser found in one head, but for the Content-Length. It is that of every head with
    the same bytes around the number."""

    __slots__ = ("_after", "_before", "_digits_at", "meaning")

    def __init__(self, before: bytes, after: bytes, meaning: Meaning) -> None:
        self._before, self._after, self.meaning = before, after, meaning
        self._digits_at = len(before)

    @classmethod
    def of(cls, data: bytes, meaning: Meaning) -> Self | None:
        """`data` begins with a head that a parser took without complaint. None where this head cannot be
        known again: it tells no length, does not end in here, or has an end of line that parsers may see
        differently."""
        end = data.find(_END, 0, _LONGEST)
        head = data[: end + len(_END)]
        lengths = list(_LENGTH.finditer(head))
        if end < 0 or len(lengths) != 1 or head.count(b"\n") != head.count(b"\r\n") or head[:1].isspace():
            return None
        return cls(head[: lengths[0].start(1)], head[lengths[0].end(1) :], meaning)

    def match(self, data: bytes) -> tuple[int, int] | None:
        """The Content-Length, and where the body begins in `data`. None: it begins with another head."""
        if not data.startswith(self._before):
            return None
        start = self._digits_at
        end = data.find(b"\r", start, start + _DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self._after, end):
            return None
        return int(digits), end + len(self._after)
