"""`memoria check`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from typing import Any

import click

from memoria.cli.options import Options, command
from memoria.cli.screens.check import render_plan, shown
from memoria.cli.screens.layout import render_problems
from memoria.config.model import Config
from memoria.engine.log import LogFile
from memoria.errors import ConfigError, ExitCode, UnavailableError
from memoria.gpu import open_reader
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight, preflight
from memoria.supervisor.runtime_dir import RuntimeDir


@command()
@click.option("--no-gpu", is_flag=True, help="Do not read the GPU.")
def check(options: Options, no_gpu: bool) -> int:
    """Validate the configuration, read the GPU and print the plan. Starts nothing.

    \b
    Example:  memoria check -c configs/one-gpu-two-models.yaml
    """
    config = options.load()
    checked = run_preflight(config, None if no_gpu else open_reader(config.device))
    if not no_gpu:
        checked = check_places(checked.config, checked)
    config = checked.config
    if options.json:
        sys.stdout.write(json.dumps(_as_json(config, checked), indent=2) + "\n")
        return checked.errors[0].exit_code if checked.errors else ExitCode.OK
    color = options.colored
    if config.warnings:
        sys.stderr.write(render_problems(config.warnings, color, "warning") + "\n\n")
    if checked.plan is not None:
        ok = not checked.errors
        screen = render_plan(
            config, checked.plan, checked.install, options.width, color, ok=ok, driver=checked.driver
        )
        sys.stdout.write(screen + "\n")
        sys.stdout.flush()
    elif not checked.errors:
        name = shown(config.path) if config.path else "the configuration"
        sys.stdout.write(f"ok: {name} is valid; the GPU was not read\n")
    checked.raise_for_errors()
    return ExitCode.OK


def run_preflight(config: Config, reader: DeviceReader | None) -> Preflight:
    """What `check` and `run` look at: the daemon's preflight, the API keys and the certificate. `reader` None
    skips the device."""
    checked = preflight(config, reader, os.environ)
    for path in (config.access.keys, config.access.admin_keys):
        if path is not None:
            from memoria.proxy.access.keys import KeyRing

            try:
                KeyRing(path)
            except ConfigError as error:
                checked = replace(checked, errors=(*checked.errors, error))
    if config.tls_files is not None:
        from memoria.daemon.tls import read_certificate

        try:
            certificate = read_certificate(config)
        except ConfigError as error:
            return replace(checked, errors=(*checked.errors, error))
        if certificate is not None:
            warnings = checked.config.warnings + certificate.warnings
            checked = replace(checked, config=replace(checked.config, warnings=warnings))
    return checked


def check_places(config: Config, checked: Preflight) -> Preflight:
    """Adds what `run` would find out later: ports in use, logs that cannot be written, an unusable runtime
    directory. While this configuration's own daemon runs, the ports are its own."""
    problems = [
        problem
        for engine in config.engines
        if (problem := LogFile.of(config.logging, engine.name).problem()) is not None
    ]
    runtime = RuntimeDir(config.runtime_dir)
    if not runtime.is_locked():
        if (problem := runtime.problem()) is not None:
            problems.append(problem)
        from memoria.daemon.listeners import unavailable

        problems += unavailable(config)
    if not problems:
        return checked
    return replace(checked, errors=(*checked.errors, UnavailableError(problems)))


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
                "awake_sets": device.awake_sets,
                "engines": [
                    {
                        "name": budget.engine,
                        "gpu_memory_utilization": str(budget.fraction),
                        "requested_bytes": budget.requested_bytes,
                        "context_bytes": budget.context_bytes,
                        "asleep_bytes": budget.asleep_bytes,
                    }
                    for budget in device.budgets
                ],
            }
            for device in devices
        ],
        "problems": [asdict(problem) for error in checked.errors for problem in error.problems],
        "warnings": [asdict(warning) for warning in config.warnings],
    }
