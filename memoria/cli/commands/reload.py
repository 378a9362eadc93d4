"""`memoria reload`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memoria.cli.client import ask, understood
from memoria.cli.commands.running import running
from memoria.errors import ExitCode, MemoriaError, Problem

PATIENCE = 90.0  # seconds: the daemon reads the GPU and looks for the models


def ask_for_reload(flag: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Prints what changed, or would. The exit code of a refusal is that of what is wrong."""
    path = "/reload?dry_run=true" if dry_run else "/reload"
    socket = running(flag).admin_socket
    answer = ask(socket, path, method="POST", patience=PATIENCE)
    with understood(socket):
        refusal = _refusal(answer) if "problems" in answer else None
        lines = [] if refusal else list(render_reload(answer))
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return refusal.exit_code if refusal else ExitCode.OK
    if refusal:
        raise refusal
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return ExitCode.OK


def _refusal(answer: dict[str, Any]) -> MemoriaError:
    error = MemoriaError(Problem(p["what"], tuple(p["where"]), p["hint"]) for p in answer["problems"])
    error.exit_code = ExitCode(answer["exit_code"])
    return error


def render_reload(answer: dict[str, Any]) -> Iterator[str]:
    would = "" if answer["applied"] else "would be "
    if answer["live"]:
        yield f"{would}changed: {', '.join(answer['live'])}"
    for engine in answer["restarts"]:
        yield f"{would}restarted: {engine['engine']} ({', '.join(engine['keys'])})"
    for verb, key in (("started", "added"), ("stopped", "removed"), ("tried again", "failed")):
        if answer[key]:
            yield f"{would}{verb}: {', '.join(answer[key])}"
    if not any(answer[key] for key in ("live", "restarts", "added", "removed", "failed")):
        yield "nothing has changed"
