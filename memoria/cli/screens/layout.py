"""Colours, problems, and text that fits a terminal's columns. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memoria.engine.lifecycle import FACTS, State, StateFacts, Tone
from memoria.errors import Problem
from memoria.logs import printable
from memoria.text import aligned

UNKNOWN = "-"
# SGR parameters, ECMA-48 8.3.117
GREEN, RED, YELLOW, CYAN, DIM, BOLD = "32", "1;31", "33", "36", "2", "1"
TONES = {Tone.QUIET: CYAN, Tone.BUSY: CYAN, Tone.GOOD: GREEN, Tone.WARN: YELLOW, Tone.BAD: "31"}
LONG_NAME, SHORT_NAME = 20, 8  # columns a name keeps, before and after columns are dropped
_ESCAPE = re.compile(r"\033\[[0-9;]*m")


def paint(text: str, code: str | None, color: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if color and code and text else text


def facts(state: str) -> StateFacts:
    """Of a state as the API names it; a newer daemon may have one that is unknown here."""
    return FACTS[State(state)] if state in set(State) else StateFacts(f"is {state}", Tone.BUSY)


def paint_state(line: str, state: str, color: bool) -> str:
    """In the colour of an engine's state."""
    return paint(line, TONES[facts(state).tone], color)


def render_problems(
    problems: Iterable[Problem], color: bool, kind: Literal["error", "warning"] = "error"
) -> str:
    label = paint(f"{kind}:", RED if kind == "error" else YELLOW, color)
    return "\n\n".join(problem.text(label, paint("hint:", CYAN, color)) for problem in problems)


def cut(line: str, width: int) -> str:
    """The first `width` columns; escape sequences take none and stay whole."""
    shown, left, at = [], width, 0
    for match in _ESCAPE.finditer(line):
        shown += [line[at : match.start()][:left], match.group()]
        left -= min(left, match.start() - at)
        at = match.end()
    return "".join((*shown, line[at:][:left]))


def columns_of(line: str) -> int:
    """Columns that a line takes, without its escape sequences."""
    return len(_ESCAPE.sub("", line))


def shortened(text: str, width: int) -> str:
    """Ends in an ellipsis if it is longer than `width`."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def wrapped(text: str, width: int | None) -> list[str]:
    """A sentence without control characters as lines of at most `width` columns, all but the first
    indented."""
    text = printable(text)
    if width is None or len(text) <= width:
        return [text]
    return textwrap.wrap(text, max(width, 20), subsequent_indent="  ", break_on_hyphens=False)


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Column:
    """`short` is the title for narrow terminals. Columns are dropped from the highest `rank` down, never
    those of rank 0; an `extra` column goes before any title is shortened."""

    title: str
    short: str
    rank: int = 0
    extra: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> tuple[str, ...]:
    """The titles, then a line per row. Drops columns and shortens titles and first-column names until it fits
    into `width`."""
    titles, cells = [column.title for column in columns], [list(row) for row in rows]
    kept = list(range(len(columns)))
    droppable = sorted((at for at in kept if columns[at].rank), key=lambda at: -columns[at].rank)

    def lines() -> tuple[str, ...]:
        return aligned([[row[at] for at in kept] for row in (titles, *cells)])

    def over() -> int:
        return 0 if width is None else max(map(len, lines())) - width

    def drop(candidates: Iterable[int]) -> None:
        for at in candidates:
            if over() > 0:
                kept.remove(at)

    def shorten_names(least: int) -> None:
        longest = max((len(row[0]) for row in cells), default=0)
        room = max(least, longest - max(0, over()))
        for row in cells:
            row[0] = shortened(row[0], room)

    drop(at for at in droppable if columns[at].extra)
    if over() > 0:
        titles = [column.short for column in columns]
        shorten_names(LONG_NAME)
        drop(at for at in droppable if not columns[at].extra)
        shorten_names(SHORT_NAME)
    return lines()
