"""`memoria top`."""

from __future__ import annotations

from collections import deque
from typing import Any

from memoria.admin.status.status import Status
from memoria.cli.client import events, find_daemon, parsing
from memoria.cli.options import Options, command
from memoria.cli.screens.live import Draw, Live
from memoria.cli.screens.top import render_top
from memoria.errors import ExitCode, NotRunningError

EVENTS_SHOWN = 8


@command()
def top(options: Options) -> int:
    """Watch the engines: memory, rates, latency and events, until Ctrl-C. In a pipe, prints them once.

    \b
    Example:  memoria top
    """
    socket = find_daemon(options.config).admin_socket
    latest: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)
    try:
        with Live() as live:
            for kind, data in events(socket, "/events"):
                if kind == "journal":
                    latest.append(data)
                if kind != "status":
                    continue
                with parsing(socket):
                    live.show(_picture(Status.from_json(data), list(latest), options))
                if not live.is_terminal:
                    return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")


def _picture(status: Status, events: list[dict[str, Any]], options: Options) -> Draw:
    return lambda width: render_top(status, events, width=width or options.width, color=options.colored)
