"""`memoria requests`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from memoria.cli.client import find_daemon, parsing, request
from memoria.cli.options import Options, command
from memoria.cli.screens.layout import UNKNOWN, milliseconds, paint, shortened
from memoria.errors import ExitCode
from memoria.logs import printable

FOLLOW = 0.5  # seconds between two looks
MOST = 500  # records that a daemon keeps
COLORS = {2: "32", 4: "33", 5: "31"}  # by the first digit of the status code

_COLUMNS = "{at:8}  {code:>4}  {total:>7}  {first:>7}  {tokens:>10}  {engine:{names}}  {route}"
_BEFORE_ENGINE = 46  # columns
_NAME, _ROUTE = 10, 22  # columns at least; an engine's name gets what a route leaves


@command()
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, MOST),
    default=20,
    show_default=True,
    help="Number of requests.",
)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new ones.")
def requests(options: Options, lines: int, follow: bool) -> int:
    """Show the latest requests: engine, times, tokens. Never prompts or answers.

    \b
    Example:  memoria requests -f
    """
    socket, width = find_daemon(options.config).admin_socket, options.line_width
    line: Callable[[dict[str, Any]], str] = (
        json.dumps if options.json else partial(render_requests, width=width, color=options.colored)
    )
    head, last, limit = ("" if options.json else header(width) + "\n"), 0, lines
    try:
        while True:
            answer = request(socket, f"/requests?limit={limit}&after={last}")
            with parsing(socket):
                rows = answer["requests"]
                text = "".join(f"{line(row)}\n" for row in rows)
                missed = rows[0]["number"] - last - 1 if rows and 0 < last < rows[0]["number"] else 0
                last = rows[-1]["number"] if rows else last
            if missed:
                sys.stderr.write(f"{missed} more not shown\n")
            sys.stdout.write(head + text)
            sys.stdout.flush()
            if not follow:
                return ExitCode.OK
            head, limit = "", MOST
            time.sleep(FOLLOW)
    except KeyboardInterrupt:
        return ExitCode.OK


# The lines. Pure.


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
