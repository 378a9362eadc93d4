"""`memoria requests`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memoria.cli.client import ask
from memoria.cli.render_requests import HEADER, render_requests
from memoria.cli.running import admin_socket, running_config
from memoria.errors import ExitCode

LOOK = 0.5  # seconds


def show_requests(flag: Path | None, *, lines: int, follow: bool, as_json: bool, color: bool) -> int:
    """Prints the latest requests, then with `follow` those that come, until interrupted."""
    socket = admin_socket(running_config(flag))
    rows = ask(socket, f"/requests?limit={lines}")["requests"]
    if not as_json:
        sys.stdout.write(HEADER + "\n")
    _print(rows, as_json=as_json, color=color)
    last = rows[-1]["number"] if rows else 0
    try:
        while follow:
            time.sleep(LOOK)
            rows = ask(socket, f"/requests?limit=500&after={last}")["requests"]
            _print(rows, as_json=as_json, color=color)
            last = rows[-1]["number"] if rows else last
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _print(rows: Sequence[dict[str, Any]], *, as_json: bool, color: bool) -> None:
    for row in rows:
        sys.stdout.write((json.dumps(row) if as_json else render_requests(row, color=color)) + "\n")
    sys.stdout.flush()
