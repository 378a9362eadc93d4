"""`memoria run`: preflight, then the daemon with its screen."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Literal

import click

from memoria.cli.commands.check import run_preflight
from memoria.cli.options import Options, command
from memoria.cli.screens.layout import render_problems
from memoria.config.model import Config
from memoria.engine.process.descriptors import raise_limit
from memoria.errors import ExitCode, Problem
from memoria.gpu import open_reader
from memoria.gpu.device import DeviceReader
from memoria.logs import configure, queued_output
from memoria.preflight.preflight import Preflight
from memoria.supervisor.runtime_dir import RuntimeDir

logger = logging.getLogger(__name__)

OFTEN = 700  # objects until a garbage collection, Python's default


@command()
@click.option("--take-over", is_flag=True, help="Replace the running daemon without refusing a connection.")
def run(options: Options, take_over: bool) -> int:
    """Run the daemon in the foreground: all engines and the proxy. Ctrl-C drains, a second one kills.

    \b
    Example:  memoria run -c memoria.yaml
    """
    return run_daemon(options.load(), options, take_over=take_over)


def run_daemon(config: Config, options: Options, *, take_over: bool = False) -> int:
    """Returns once the daemon was stopped and every process has ended. Raises `MemoriaError` before any
    engine is spawned."""
    from memoria.daemon import handover, systemd

    configure("DEBUG" if options.verbose else config.logging.level, config.logging.format)
    raise_limit()
    reader = open_reader(config.device)
    given, lock_timeout = systemd.inherited_sockets(os.environ), 0.0
    if take_over:
        run_preflight(config, reader).raise_for_errors()  # while the other daemon still serves
        given += handover.take_over(RuntimeDir(config.runtime_dir).handover_socket)
        lock_timeout = sum((2 * config.timeouts.drain, config.timeouts.stop, config.timeouts.release, 20.0))
    # Before the preflight: the memory of the other daemon's engines is not a stranger's.
    with RuntimeDir(config.runtime_dir, lock_timeout=lock_timeout) as runtime:
        checked = run_preflight(config, reader)
        _warn(checked.config.warnings, config.logging.format)
        checked.raise_for_errors()
        _serve(checked, reader, runtime, given, options)
    return ExitCode.OK


def _warn(warnings: Sequence[Problem], form: Literal["text", "json"]) -> None:
    if form == "json":
        for warning in warnings:
            logger.warning("%s", warning.line)
    elif warnings:
        color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        sys.stderr.write(render_problems(warnings, color, "warning") + "\n")


def _serve(
    checked: Preflight,
    reader: DeviceReader,
    runtime: RuntimeDir,
    given: Sequence[socket.socket],
    options: Options,
) -> None:
    # Half a second of imports, which a refusal need not wait for.
    import uvloop

    from memoria.cli.screens.run import make_screen
    from memoria.daemon.daemon import Daemon

    async def serve() -> None:
        daemon = Daemon(checked, reader, runtime, os.environ, given)
        gc.freeze()  # collections need not look again at what exists so far
        gc.set_threshold(OFTEN)
        with make_screen(daemon, verbose=options.verbose, color=options.colored):
            await daemon.run()

    with queued_output():
        uvloop.run(serve())
