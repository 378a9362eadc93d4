"""`memoria status`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from memoria.admin.status import Status
from memoria.cli.client import ask
from memoria.cli.render_status import render_status
from memoria.cli.running import admin_socket, running_config


def show_status(flag: Path | None, *, as_json: bool, width: int, color: bool) -> bool:
    """Prints the table; returns whether every engine is ready."""
    status = Status.from_json(ask(admin_socket(running_config(flag)), "/status"))
    if as_json:
        text = json.dumps(status.to_json(), indent=2)
    else:
        text = render_status(status, width=width, color=color)
    sys.stdout.write(text + "\n")
    return status.healthy
