"""Colours, problems, and text that fits a terminal's columns. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    return "\n\n".join(_problem(problem, color, kind) for problem in problems)


def _problem(problem: Problem, color: bool, kind: str) -> str:
    label = paint(f"{kind}:", RED if kind == "error" else YELLOW, color)
    lines = [f"{label} {problem.what}", *(f"  {line}" for line in problem.where)]
    if problem.hint:
        lines.append(f"{paint('hint:', CYAN, color)} {problem.hint}")
    return "\n".join(lines)


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
    made = _Table(list(columns), [list(row) for row in rows])
    if width is None or made.over(width) <= 0:
        return made.lines()
    for _ in range(sum(column.extra for column in columns)):
        made.drop()
        if made.over(width) <= 0:
            return made.lines()
    made.shorten_titles()
    made.shorten_names(width, LONG_NAME)
    while made.over(width) > 0 and made.drop():
        pass
    made.shorten_names(width, SHORT_NAME)
    return made.lines()


@dataclass(slots=True)
class _Table:
    columns: list[Column]
    rows: list[list[str]]

    def lines(self) -> tuple[str, ...]:
        return aligned([[column.title for column in self.columns], *self.rows])

    def over(self, width: int) -> int:
        return max(map(len, self.lines())) - width

    def drop(self) -> bool:
        """Drops the least important column; False if none can go."""
        at = max(range(len(self.columns)), key=lambda number: self.columns[number].rank)
        if not self.columns[at].rank:
            return False
        del self.columns[at]
        for row in self.rows:
            del row[at]
        return True

    def shorten_titles(self) -> None:
        self.columns = [replace(column, title=column.short) for column in self.columns]

    def shorten_names(self, width: int, least: int) -> None:
        longest = max((len(row[0]) for row in self.rows), default=0)
        room = max(least, longest - max(0, self.over(width)))
        self.rows = [[shortened(row[0], room), *row[1:]] for row in self.rows]
