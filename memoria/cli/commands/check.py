"""`memoria check`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from memoria.cli.commands.preflight import look, look_at_places
from memoria.cli.screens.plan import render_plan, render_problems
from memoria.config.file import shown
from memoria.config.model import Config
from memoria.errors import ExitCode
from memoria.gpu import open_reader
from memoria.preflight.preflight import Preflight


def run_check(config: Config, *, no_gpu: bool, as_json: bool, width: int, color: bool) -> int:
    """Prints the plan on standard output, then raises everything that stands against it."""
    checked = look(config, None if no_gpu else open_reader(config.device))
    if not no_gpu:
        checked = look_at_places(checked.config, checked)
    config = checked.config
    if as_json:
        sys.stdout.write(json.dumps(_as_json(config, checked), indent=2) + "\n")
        return checked.errors[0].exit_code if checked.errors else ExitCode.OK
    if config.warnings:
        sys.stderr.write(render_problems(config.warnings, color, "warning") + "\n\n")
    if checked.plan is not None:
        ok = not checked.errors
        sys.stdout.write(render_plan(config, checked.plan, checked.install, width, color, ok=ok) + "\n")
        sys.stdout.flush()
    elif not checked.errors:
        name = shown(config.path) if config.path else "the configuration"
        sys.stdout.write(f"ok: {name} is valid; the GPU was not read\n")
    checked.raise_for_errors()
    return ExitCode.OK


def _as_json(config: Config, checked: Preflight) -> dict[str, Any]:
    devices = checked.plan.devices if checked.plan is not None else ()
    return {
        "config": str(config.path) if config.path else None,
        "ok": not checked.errors,
        "vllm": None
        if checked.install is None
        else {
            "version": checked.install.version,
            "variant": checked.install.variant,
            "command": list(checked.install.command),
        },
        "driver": checked.driver or None,
        "devices": [
            {
                "label": device.device.label,
                "name": device.device.name,
                "uuid": device.device.uuid,
                "total_bytes": device.device.total_bytes,
                "free_bytes": device.device.free_bytes,
                "unplanned_bytes": device.unplanned_bytes,
                "engines": [
                    {
                        "name": budget.engine,
                        "gpu_memory_utilization": str(budget.fraction),
                        "requested_bytes": budget.requested_bytes,
                        "context_bytes": budget.context_bytes,
                    }
                    for budget in device.budgets
                ],
            }
            for device in devices
        ],
        "problems": [asdict(problem) for error in checked.errors for problem in error.problems],
        "warnings": [asdict(warning) for warning in config.warnings],
    }
