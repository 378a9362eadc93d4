"""Text that is redrawn: a whole screen, a region below printed lines, or one line. Plain ANSI (ECMA-48,
xterm)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self, TextIO, cast

from memoria.cli.screens.layout import columns_of, cut

Draw = Callable[[int | None], str]  # the picture for a number of columns; None: as wide as it gets
HIDE_CURSOR, SHOW_CURSOR = "\033[?25l", "\033[?25h"
MAIN_SCREEN, ALTERNATE_SCREEN = "\033[?1049l", "\033[?1049h"
CLEAR_LINE, CLEAR_REST, HOME = "\033[K", "\033[J", "\033[H"


class Live:
    """A picture as large as the terminal, redrawn in place, also after a resize; the last one stays behind.
    What is still too wide or too high is cut: it would spoil the next picture.

    Without a terminal each picture is printed below the one before, if it differs; with `lines` on a
    terminal, too: then a picture is one line.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self.is_terminal, self._lines = not lines and sys.stdout.isatty(), lines
        self._draw: Draw | None = None
        self._before: str | None = None
        self._drawing = False

    def __enter__(self) -> Self:
        if self.is_terminal:
            signal.signal(signal.SIGWINCH, self._resized)
            sys.stdout.write(ALTERNATE_SCREEN + HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_terminal:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            sys.stdout.write(SHOW_CURSOR + MAIN_SCREEN)
            if self._draw is not None:
                sys.stdout.write(self._draw(terminal_size().columns) + "\n")
            sys.stdout.flush()

    def show(self, draw: Draw) -> None:
        self._drawing, self._draw = True, draw
        if self.is_terminal:
            size = terminal_size()
            lines = draw(size.columns).splitlines()[: max(1, size.lines - 1)]
            shown = "".join(cut(line, size.columns) + f"{CLEAR_LINE}\n" for line in lines)
            sys.stdout.write(f"{HOME}{shown}{CLEAR_REST}")
        elif (picture := draw(None)) != self._before:
            sys.stdout.write(("" if self._lines or self._before is None else "\n") + picture + "\n")
            self._before = picture
        sys.stdout.flush()
        self._drawing = False

    def _resized(self, _: int, __: FrameType | None) -> None:
        if self._draw is not None and not self._drawing:
            self.show(self._draw)


class Region:
    """The last lines of a terminal, redrawn in place; lines printed meanwhile, also those of standard error,
    stand above them for good."""

    def __init__(self, terminal: TextIO | None = None, *, size: os.terminal_size | None = None) -> None:
        self._terminal = terminal or sys.stdout
        self._size = size
        self._shown: list[str] = []
        self._lock = threading.Lock()  # a log line may come from any thread
        self._above: _Above | None = None

    def __enter__(self) -> Self:
        self._terminal.write(HIDE_CURSOR)
        if sys.stderr.isatty():
            self._above = _Above(self, sys.stderr)
            sys.stderr = cast("TextIO", self._above)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(SHOW_CURSOR)
        if self._above is not None:
            sys.stderr = self._above.end()
            self._above = None

    def size(self) -> os.terminal_size:
        return self._size or terminal_size()

    def show(self, lines: Sequence[str]) -> None:
        """Replaces what is shown. Each line takes one row: one that is too wide is cut, and of more lines
        than rows only the last are shown, as the cursor could not go back to the others."""
        with self._lock:
            size, erase = self.size(), self._erase()
            self._shown = [cut(line, size.columns) for line in lines][-max(1, size.lines - 1) :]
            self._write(erase + self._text())

    def print(self, text: str) -> None:
        """Writes whole lines above."""
        with self._lock:
            self._write(self._erase() + text + self._text())

    def _text(self) -> str:
        return "".join(f"{line}\n" for line in self._shown)

    def _erase(self) -> str:
        """Counts rows, not lines: a terminal that got narrower has wrapped them."""
        columns = self.size().columns
        rows = sum(max(1, -(-columns_of(line) // columns)) for line in self._shown)
        return f"\033[{rows}A\r{CLEAR_REST}" if rows else ""

    def _write(self, text: str) -> None:
        self._terminal.write(text)
        self._terminal.flush()


class _Above:
    """Standard error while a region is on the terminal."""

    def __init__(self, region: Region, stderr: TextIO) -> None:
        self._region, self._stderr, self._begun = region, stderr, ""

    def write(self, text: str) -> int:
        whole, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._region.print(whole + newline)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: only whole lines are written."""

    def end(self) -> TextIO:
        self._stderr.write(self._begun)
        return self._stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stderr, name)


class StatusLine:
    """One line of a terminal that is overwritten."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal

    def show(self, text: str) -> None:
        self._terminal.write(f"\r{CLEAR_LINE}{text}")
        self._terminal.flush()

    def clear(self) -> None:
        self.show("")


def terminal_size() -> os.terminal_size:
    """Of the terminal itself, as COLUMNS does not follow a resize; if that is unknown, as shells have it."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return size if size.columns and size.lines else shutil.get_terminal_size((80, 24))
