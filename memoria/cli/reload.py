"""`memoria reload`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memoria.cli.client import ask
from memoria.cli.running import admin_socket, running_config
from memoria.errors import ConfigError, ExitCode, Problem

PATIENCE = 90.0  # seconds: the daemon reads the GPU and looks for the models


def ask_for_reload(flag: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Prints what changed, or would. The exit code of a refusal is that of what is wrong."""
    path = "/reload?dry_run=true" if dry_run else "/reload"
    answer = ask(admin_socket(running_config(flag)), path, method="POST", patience=PATIENCE)
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return int(answer.get("exit_code", ExitCode.OK))
    if "problems" in answer:
        raise ConfigError(Problem(p["what"], tuple(p["where"]), p["hint"]) for p in answer["problems"])
    for line in render_reload(answer):
        sys.stdout.write(line + "\n")
    return ExitCode.OK


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
