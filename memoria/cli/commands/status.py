"""`memoria status` and `memoria top`."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import click

from memoria.admin.status.status import Status
from memoria.cli.client import events, find_daemon, parsing, request
from memoria.cli.options import Options, command
from memoria.cli.screens.live import Draw, Live
from memoria.cli.screens.status import render_starts, render_status, render_top
from memoria.errors import ExitCode, NotRunningError

EVENTS_SHOWN = 8  # by `top`


@command()
@click.option("-w", "--watch", is_flag=True, help="Update with every change, until Ctrl-C.")
@click.option("--starts", is_flag=True, help="Where the time of each engine's latest start went.")
def status(options: Options, watch: bool, starts: bool) -> int:
    """Show engine status. Exit code 0: all engines are ready, 1: degraded, 3: memoria is not running.

    \b
    Example:  memoria status --watch
    """

    def draw(now: Status, width: int | None) -> str:
        if options.json:
            return json.dumps(now.to_json(), indent=None if watch else 2)
        if starts:
            return render_starts(now, width=width)
        return render_status(now, width=width, color=options.colored)

    if watch:
        return _watch(options, lambda now, _: lambda width: draw(now, width), lines=options.json)
    socket = find_daemon(options.config).admin_socket
    data = request(socket, "/status")
    with parsing(socket):
        now = Status.from_json(data)
        text = draw(now, options.line_width)
    sys.stdout.write(text + "\n")
    return ExitCode.OK if now.healthy else ExitCode.FAILURE


@command()
def top(options: Options) -> int:
    """Watch the engines: memory, rates, latency and events, until Ctrl-C. In a pipe, prints them once.

    \b
    Example:  memoria top
    """

    def picture(now: Status, latest: list[dict[str, Any]]) -> Draw:
        return lambda width: render_top(now, latest, width=width or options.width, color=options.colored)

    return _watch(options, picture, once=True)


def _watch(
    options: Options,
    picture: Callable[[Status, list[dict[str, Any]]], Draw],
    *,
    lines: bool = False,
    once: bool = False,
) -> int:
    """Shows what `picture` makes of each status and the latest events: redrawn on a terminal; elsewhere one
    below the other, or the first one only (`once`). Raises `NotRunningError` when the daemon ends."""
    socket = find_daemon(options.config).admin_socket
    latest: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)
    try:
        with Live(lines=lines) as live:
            for kind, data in events(socket, "/events"):
                if kind == "journal":
                    latest.append(data)
                if kind != "status":
                    continue
                with parsing(socket):
                    live.show(picture(Status.from_json(data), list(latest)))
                if once and not live.is_terminal:
                    return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")
