"""`memoria top`."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from memoria.admin.status import Status
from memoria.cli.client import events
from memoria.cli.live import Live
from memoria.cli.render_top import render_top
from memoria.cli.running import admin_socket, running_config
from memoria.errors import ExitCode, NotRunningError

EVENTS_SHOWN = 8


def show_top(flag: Path | None, *, width: int, color: bool) -> int:
    """On a terminal until Ctrl-C, otherwise once. Raises `NotRunningError` when the daemon has ended."""
    latest: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)
    try:
        with Live(width) as live:
            for kind, data in events(admin_socket(running_config(flag)), "/events"):
                if kind == "journal":
                    latest.append(data)
                    continue
                status = Status.from_json(data)
                live.show(render_top(status, list(latest), width=width, color=color))
                if not live.is_terminal:
                    return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")
