"""The lines of `memoria logs` -> text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from memoria.cli.screens.layout import paint
from memoria.logs import printable
from memoria.vllm.log_lines import time_of

UNKNOWN = datetime.min
LOOK_AHEAD = 200  # first lines without a time that get the time of the line below them
COLORS = ("36", "33", "32", "35", "34")  # one engine after the other, as docker compose does


class Line(NamedTuple):
    """`at` is when it was written, or the line above it; `UNKNOWN` if neither says."""

    at: datetime
    engine: str
    text: str


def dated(engine: str, texts: Iterable[str], now: datetime) -> Iterator[Line]:
    """Dates lines with times that never go back; a line without one has that of the line above."""
    texts, first = iter(texts), []
    at = UNKNOWN
    for text in texts:
        first.append(text)
        found = time_of(text, now)
        if found is not None:
            at = found
        if found is not None or len(first) == LOOK_AHEAD:
            break
    for text in chain(first, texts):
        at = max(at, time_of(text, now) or at)
        yield Line(at, engine, text)


def render(engines: Sequence[str], *, as_json: bool, color: bool) -> Callable[[Line], str]:
    """Returns the function that turns a log's line into the screen's, with the engine's name if there are
    several."""
    if as_json:
        return _as_json
    if len(engines) == 1:
        return lambda line: printable(line.text)
    width = max(map(len, engines))
    names = {
        name: paint(f"{name:{width}} |", COLORS[number % len(COLORS)], color)
        for number, name in enumerate(engines)
    }
    return lambda line: f"{names[line.engine]} {printable(line.text)}"


def _as_json(line: Line) -> str:
    at = None if line.at == UNKNOWN else line.at.astimezone().isoformat(timespec="seconds")
    return json.dumps({"engine": line.engine, "time": at, "line": line.text})
