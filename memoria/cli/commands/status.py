"""`memoria status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from memoria.admin.status.status import Status
from memoria.cli.client import ask, events, understood
from memoria.cli.commands.running import running
from memoria.cli.screens.live import Draw, Live
from memoria.cli.screens.status import render_status
from memoria.errors import ExitCode, NotRunningError


def show_status(flag: Path | None, *, as_json: bool, width: int | None, color: bool) -> bool:
    """Prints the table; returns whether every engine is ready."""
    socket = running(flag).admin_socket
    data = ask(socket, "/status")
    with understood(socket):
        status = Status.from_json(data)
        text = (
            json.dumps(status.to_json(), indent=2)
            if as_json
            else render_status(status, width=width, color=color)
        )
    sys.stdout.write(text + "\n")
    return status.healthy


def watch_status(flag: Path | None, *, as_json: bool, color: bool) -> int:
    """On a terminal one table, redrawn; otherwise one after another, each time that something is different;
    as JSON one object on each line. Ends with Ctrl-C, or raises `NotRunningError` when the
    daemon has ended."""
    socket = running(flag).admin_socket
    try:
        with Live(lines=as_json) as live:
            for kind, data in events(socket, "/events"):
                if kind == "status":
                    with understood(socket):
                        live.show(_drawn(Status.from_json(data), as_json=as_json, color=color))
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")


def _drawn(status: Status, *, as_json: bool, color: bool) -> Draw:
    if as_json:
        return lambda _: json.dumps(status.to_json())
    return lambda width: render_status(status, width=width, color=color)
