"""Making text fit into a terminal's columns. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memoria.engine.lifecycle import FACTS, State, StateFacts, Tone
from memoria.logs import printable
from memoria.text import aligned

UNKNOWN = "-"
LONG_NAME, SHORT_NAME = 20, 8  # columns that a name has at least, before and after others have given way
_ESCAPE = re.compile(r"\033\[[0-9;]*m")
STYLES = {Tone.QUIET: "cyan", Tone.BUSY: "cyan", Tone.GOOD: "green", Tone.WARN: "yellow", Tone.BAD: "red"}
_SGR = {"cyan": 36, "green": 32, "yellow": 33, "red": 31}


def facts(state: str) -> StateFacts:
    """Of a state as the API names it; a newer daemon may have one that is unknown here."""
    return FACTS[State(state)] if state in set(State) else StateFacts(f"is {state}", Tone.BUSY)


def painted(line: str, state: str, *, color: bool) -> str:
    """In the colour of an engine's state."""
    return f"\033[{_SGR[STYLES[facts(state).tone]]}m{line}\033[0m" if color else line


def cut(line: str, width: int) -> str:
    """The first `width` columns; escapes take none and stay whole."""
    shown, left, at = [], width, 0
    for match in _ESCAPE.finditer(line):
        shown += [line[at : match.start()][:left], match.group()]
        left -= min(left, match.start() - at)
        at = match.end()
    return "".join((*shown, line[at:][:left]))


def shortened(text: str, width: int) -> str:
    """With an ellipsis at its end where it is longer."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def wrapped(text: str, width: int | None) -> list[str]:
    """A sentence without control characters, in lines of at most `width` columns, the later ones indented."""
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
    """`short`: the title where there is little room. `rank`: 0 stays in any case; of the others the highest
    goes first, before any title is shortened where it is an `extra`."""

    title: str
    short: str
    rank: int = 0
    extra: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> tuple[str, ...]:
    """The titles, then a line for each row; columns, titles and the names in the first column give way until
    it fits into `width`."""
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
        """The column that matters least. False: none can go."""
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
