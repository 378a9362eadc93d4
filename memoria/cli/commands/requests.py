"""`memoria requests`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from memoria.cli.client import find_daemon, parsing, request
from memoria.cli.options import Options, command
from memoria.cli.screens.requests import header, render_requests
from memoria.errors import ExitCode

FOLLOW = 0.5  # seconds between two looks
MOST = 500  # records that a daemon keeps


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
    head, last, limit = ("" if options.json else header(width) + "\n"), 0, lines
    try:
        while True:
            answer = request(socket, f"/requests?limit={limit}&after={last}")
            with parsing(socket):
                rows = answer["requests"]
                text = "".join(_line(row, options, width) for row in rows)
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


def _line(row: dict[str, Any], options: Options, width: int | None) -> str:
    return (
        json.dumps(row) if options.json else render_requests(row, width=width, color=options.colored)
    ) + "\n"
