"""`memoria reload`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from memoria.cli.client import find_daemon, parsing, request
from memoria.cli.options import Options, command
from memoria.cli.screens.layout import render_problems
from memoria.errors import ExitCode, MemoriaError, Problem

PATIENCE = 90.0  # seconds: the daemon reads the GPU and looks for the models


@command()
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def reload(options: Options, dry_run: bool) -> int:
    """Reload the configuration of the running daemon. Only engines whose own settings changed restart, one
    after the other; an invalid file changes nothing.

    \b
    Example:  memoria reload --dry-run
    """
    path = "/reload?dry_run=true" if dry_run else "/reload"
    socket = find_daemon(options.config).admin_socket
    answer = request(socket, path, method="POST", patience=PATIENCE)
    with parsing(socket):
        refusal = _refusal(answer) if "problems" in answer else None
        lines = [] if refusal else list(render_reload(answer))
        warnings = [] if refusal else [*map(_problem, answer["warnings"])]
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return refusal.exit_code if refusal else ExitCode.OK
    if refusal:
        raise refusal
    if warnings:
        sys.stderr.write(render_problems(warnings, options.colored, "warning") + "\n\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return ExitCode.OK


def _refusal(answer: dict[str, Any]) -> MemoriaError:
    """Has the exit code of the problems found."""
    error = MemoriaError(map(_problem, answer["problems"]))
    error.exit_code = ExitCode(answer["exit_code"])
    return error


def _problem(found: dict[str, Any]) -> Problem:
    return Problem(found["what"], tuple(found["where"]), found["hint"])


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
