"""A picture that is drawn again and again: in place on a terminal, one below the other elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from memoria.cli.screens.layout import cut

Draw = Callable[[int | None], str]  # the picture for so many columns; None: as many as it wants


class Live:
    """On a terminal a picture has the terminal's size, also when that changes: what is still too wide or too
    high is cut, since it would spoil the next one. `lines`: a picture is one line, below the one before on a
    terminal, too."""

    def __init__(self, *, lines: bool = False) -> None:
        self.is_terminal, self._lines = not lines and sys.stdout.isatty(), lines
        self._draw: Draw | None = None
        self._before: str | None = None
        self._drawing = False

    def __enter__(self) -> Self:
        if self.is_terminal:
            signal.signal(signal.SIGWINCH, self._resized)
            sys.stdout.write("\033[?1049h\033[?25l")  # the alternate screen, without a cursor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_terminal:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            sys.stdout.write("\033[?25h\033[?1049l")
            if self._draw is not None:
                sys.stdout.write(self._draw(terminal_size().columns) + "\n")
            sys.stdout.flush()

    def show(self, draw: Draw) -> None:
        self._drawing, self._draw = True, draw
        if self.is_terminal:
            size = terminal_size()
            lines = draw(size.columns).splitlines()[: max(1, size.lines - 1)]
            shown = "".join(cut(line, size.columns) + "\033[K\n" for line in lines)
            sys.stdout.write(f"\033[H{shown}\033[J")
        elif (picture := draw(None)) != self._before:
            sys.stdout.write(("" if self._lines or self._before is None else "\n") + picture + "\n")
            self._before = picture
        sys.stdout.flush()
        self._drawing = False

    def _resized(self, _: int, __: FrameType | None) -> None:
        if self._draw is not None and not self._drawing:
            self.show(self._draw)


def terminal_size() -> os.terminal_size:
    """Of the terminal itself, as COLUMNS does not change with it; where it does not say, as shells do it."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return size if size.columns and size.lines else shutil.get_terminal_size((80, 24))
