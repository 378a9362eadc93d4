"""`memoria status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from memoria.admin.status import Status
from memoria.cli.client import ask, events, understood
from memoria.cli.live import Live
from memoria.cli.render_status import render_status
from memoria.cli.running import running
from memoria.errors import ExitCode, NotRunningError


def show_status(flag: Path | None, *, as_json: bool, width: int, color: bool) -> bool:
    """Prints the table; returns whether every engine is ready."""
    socket = running(flag).admin_socket
    data = ask(socket, "/status")
    with understood(socket):
        status = Status.from_json(data)
        text = _text(status, as_json=as_json, width=width, color=color)
    sys.stdout.write(text + "\n")
    return status.healthy


def watch_status(flag: Path | None, *, as_json: bool, width: int, color: bool) -> int:
    """On a terminal one table, redrawn; otherwise one after another, each time that something is different.
    Ends with Ctrl-C, or raises `NotRunningError` when the daemon has ended."""
    socket = running(flag).admin_socket
    try:
        with Live(width) as live:
            for kind, data in events(socket, "/events"):
                if kind == "status":
                    with understood(socket):
                        text = _text(Status.from_json(data), as_json=as_json, width=width, color=color)
                    live.show(text)
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")


def _text(status: Status, *, as_json: bool, width: int, color: bool) -> str:
    if as_json:
        return json.dumps(status.to_json(), indent=2)
    return render_status(status, width=width, color=color)
