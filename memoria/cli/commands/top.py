"""`memoria top`."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from memoria.admin.status.status import Status
from memoria.cli.client import events, understood
from memoria.cli.commands.running import running
from memoria.cli.screens.live import Draw, Live
from memoria.cli.screens.top import render_top
from memoria.errors import ExitCode, NotRunningError

EVENTS_SHOWN = 8


def show_top(flag: Path | None, *, width: int, color: bool) -> int:
    """On a terminal until Ctrl-C, otherwise once, in `width` columns. Raises `NotRunningError` when the
    daemon has ended."""
    socket = running(flag).admin_socket
    latest: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)
    try:
        with Live() as live:
            for kind, data in events(socket, "/events"):
                if kind == "journal":
                    latest.append(data)
                if kind != "status":
                    continue
                with understood(socket):
                    live.show(_drawn(Status.from_json(data), list(latest), width, color=color))
                if not live.is_terminal:
                    return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")


def _drawn(status: Status, events: list[dict[str, Any]], width: int, *, color: bool) -> Draw:
    return lambda terminal: render_top(status, events, width=terminal or width, color=color)
