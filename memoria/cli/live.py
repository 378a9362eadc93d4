"""A picture that is drawn again and again: in place on a terminal, one below the other elsewhere."""

from __future__ import annotations

import re
import sys
from types import TracebackType
from typing import Self

_ESCAPE = re.compile(r"\033\[[0-9;]*m")


class Live:
    """`width` in columns: on a terminal longer lines are cut, since one that wraps spoils the picture."""

    def __init__(self, width: int) -> None:
        self._width, self.is_terminal = width, sys.stdout.isatty()
        self._before: str | None = None

    def __enter__(self) -> Self:
        if self.is_terminal:
            sys.stdout.write("\033[?1049h\033[?25l")  # the alternate screen, without a cursor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_terminal:
            sys.stdout.write("\033[?25h\033[?1049l")
            if self._before is not None:
                sys.stdout.write(self._before + "\n")
            sys.stdout.flush()

    def show(self, picture: str) -> None:
        if self.is_terminal:
            lines = (cut(line, self._width) + "\033[K\n" for line in picture.splitlines())
            sys.stdout.write("\033[H" + "".join(lines) + "\033[J")
        elif picture != self._before:
            sys.stdout.write(("" if self._before is None else "\n") + picture + "\n")
        self._before = picture
        sys.stdout.flush()


def cut(line: str, width: int) -> str:
    """The first `width` columns; escapes take none and stay whole."""
    shown, left, at = [], width, 0
    for match in _ESCAPE.finditer(line):
        shown += [line[at : match.start()][:left], match.group()]
        left -= min(left, match.start() - at)
        at = match.end()
    return "".join((*shown, line[at:][:left]))
