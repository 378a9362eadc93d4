"""The lines of `memoria logs` -> text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from memoria.logs import printable
from memoria.vllm.log_lines import time_of

UNKNOWN = datetime.min
LOOK_AHEAD = 200  # lines at the beginning without a time that take the next one's
COLORS = ("36", "33", "32", "35", "34")  # one engine after the other, as docker compose does


class Line(NamedTuple):
    """`at`: when it was written, or the line above it; `UNKNOWN` where no line says."""

    at: datetime
    engine: str
    text: str


def dated(engine: str, texts: Iterable[str], now: datetime) -> Iterator[Line]:
    """With times that never go back: what has none belongs to the line above."""
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
    """What makes a line of a log a line of the screen: with its engine's name where there are several."""
    if as_json:
        return _as_json
    if len(engines) == 1:
        return lambda line: printable(line.text)
    width = max(map(len, engines))
    names = {name: f"{name:{width}} |" for name in engines}
    if color:
        names = {
            name: f"\033[{COLORS[number % len(COLORS)]}m{prefix}\033[0m"
            for number, (name, prefix) in enumerate(names.items())
        }
    return lambda line: f"{names[line.engine]} {printable(line.text)}"


def _as_json(line: Line) -> str:
    at = None if line.at == UNKNOWN else line.at.astimezone().isoformat(timespec="seconds")
    return json.dumps({"engine": line.engine, "time": at, "line": line.text})
