"""`memoria requests`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from memoria.cli.client import ask, understood
from memoria.cli.commands.running import running
from memoria.cli.screens.requests import header, render_requests
from memoria.errors import ExitCode

LOOK = 0.5  # seconds
MOST = 500  # that a daemon keeps


def show_requests(
    flag: Path | None, *, lines: int, follow: bool, as_json: bool, width: int | None, color: bool
) -> int:
    """Prints the latest requests, then with `follow` those that come, until interrupted. Of more than `MOST`
    between two looks the last are shown, and it is said how many are not."""
    socket = running(flag).admin_socket
    head, last, limit = ("" if as_json else header(width) + "\n"), 0, lines
    try:
        while True:
            told = ask(socket, f"/requests?limit={limit}&after={last}")
            with understood(socket):
                rows = told["requests"]
                text = "".join(_line(row, as_json=as_json, width=width, color=color) for row in rows)
                missed = rows[0]["number"] - last - 1 if rows and 0 < last < rows[0]["number"] else 0
                last = rows[-1]["number"] if rows else last
            if missed:
                sys.stderr.write(f"{missed} more came meanwhile\n")
            sys.stdout.write(head + text)
            sys.stdout.flush()
            if not follow:
                return ExitCode.OK
            head, limit = "", MOST
            time.sleep(LOOK)
    except KeyboardInterrupt:
        return ExitCode.OK


def _line(row: dict[str, Any], *, as_json: bool, width: int | None, color: bool) -> str:
    return (json.dumps(row) if as_json else render_requests(row, width=width, color=color)) + "\n"
