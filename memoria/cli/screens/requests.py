"""The lines of `memoria requests`: request records -> text. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from memoria.cli.screens.layout import UNKNOWN, milliseconds, paint, shortened
from memoria.logs import printable

COLORS = {2: "32", 4: "33", 5: "31"}  # by the first digit of the status code

_COLUMNS = "{at:8}  {code:>4}  {total:>7}  {first:>7}  {tokens:>10}  {engine:{names}}  {route}"
_BEFORE_ENGINE = 46  # columns
_NAME, _ROUTE = 10, 22  # columns at least; an engine's name gets what a route leaves


def header(width: int | None) -> str:
    line = _COLUMNS.format(
        at="TIME",
        code="CODE",
        total="TOTAL",
        first="FIRST",
        tokens="TOKENS",
        engine="ENGINE",
        names=_names(width),
        route="ROUTE",
    )
    return line if width is None else shortened(line, width)


def render_requests(row: Mapping[str, Any], *, width: int | None, color: bool) -> str:
    """One line, and a second one for notes that do not fit. FIRST is the time to the answer's first byte,
    TOKENS are those of the prompt and of the completion. `width` None: as wide as it gets."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    names, engine = _names(width), printable(row["engine"] or UNKNOWN)
    line = _COLUMNS.format(
        at=time.strftime("%H:%M:%S", time.localtime(row["at"])),
        code=row["status"],
        total=milliseconds(row["duration_s"]),
        first=milliseconds(row["first_byte_s"]),
        tokens=UNKNOWN if prompt is None else f"{prompt}+{completion or 0}",
        engine=engine if width is None else shortened(engine, names),
        names=names,
        route=printable(row["route"] or UNKNOWN),
    )
    marks = {"aborted": "aborted", "replays": "replayed", "key": printable(f"key {row['key']}")}
    notes = [text for field, text in marks.items() if row[field]]
    lines = ["  ".join((line, *notes))]
    if width is not None and len(lines[0]) > width:
        indent = " " * (_BEFORE_ENGINE + names + 2)
        below = [indent + ", ".join(notes)] if notes else []
        lines = [shortened(part, width) for part in (line, *below)]
    return paint("\n".join(lines), COLORS.get(row["status"] // 100), color)


def _names(width: int | None) -> int:
    return max(_NAME, min(24, (width or 0) - _BEFORE_ENGINE - _ROUTE - 2))
