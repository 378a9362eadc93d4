"""`memoria status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from memoria.admin.status.status import Status
from memoria.cli.client import events, find_daemon, parsing, request
from memoria.cli.options import Options, command
from memoria.cli.screens.live import Draw, Live
from memoria.cli.screens.status import render_status
from memoria.errors import ExitCode, NotRunningError


@command()
@click.option("-w", "--watch", is_flag=True, help="Update with every change, until Ctrl-C.")
def status(options: Options, watch: bool) -> int:
    """Show engine status. Exit code 0: all engines are ready, 1: degraded, 3: memoria is not running.

    \b
    Example:  memoria status --watch
    """
    socket = find_daemon(options.config).admin_socket
    if watch:
        return _watch(socket, options)
    data = request(socket, "/status")
    with parsing(socket):
        now = Status.from_json(data)
        text = (
            json.dumps(now.to_json(), indent=2)
            if options.json
            else render_status(now, width=options.line_width, color=options.colored)
        )
    sys.stdout.write(text + "\n")
    return ExitCode.OK if now.healthy else ExitCode.FAILURE


def _watch(socket: Path, options: Options) -> int:
    """Redraws one table on a terminal; elsewhere prints a table, or with --json a line, per change. Raises
    `NotRunningError` when the daemon ends."""
    try:
        with Live(lines=options.json) as live:
            for kind, data in events(socket, "/events"):
                if kind == "status":
                    with parsing(socket):
                        live.show(_picture(Status.from_json(data), options))
    except KeyboardInterrupt:
        return ExitCode.OK
    raise NotRunningError("memoria has ended")


def _picture(status: Status, options: Options) -> Draw:
    if options.json:
        return lambda _: json.dumps(status.to_json())
    return lambda width: render_status(status, width=width, color=options.colored)
