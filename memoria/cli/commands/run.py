"""`memoria run`: preflight, then the daemon with its screen."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Literal

from memoria import logs
from memoria.cli.commands.preflight import look
from memoria.cli.screens.plan import render_problems
from memoria.config.model import Config
from memoria.daemon.handover import take_over as handed_over
from memoria.daemon.systemd import inherited_sockets
from memoria.engine.process.descriptors import raise_limit
from memoria.errors import ExitCode, Problem
from memoria.gpu import open_reader
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight
from memoria.supervisor.runtime_dir import RuntimeDir

logger = logging.getLogger(__name__)

OFTEN = 700  # objects until a collection, as Python has it by itself


def run_daemon(config: Config, *, verbose: bool, color: bool, take_over: bool = False) -> int:
    """Returns when the daemon was asked to stop and everything has ended. Raises `MemoriaError` before
    anything was spawned."""
    logs.configure("DEBUG" if verbose else config.logging.level, config.logging.format)
    raise_limit()
    reader = open_reader(config.device)
    given, patience = inherited_sockets(os.environ), 0.0
    if take_over:
        look(config, reader).raise_for_errors()  # while the other one still serves
        given += handed_over(RuntimeDir(config.runtime_dir).handover_socket)
        patience = sum((2 * config.timeouts.drain, config.timeouts.stop, config.timeouts.release, 20.0))
    # Before the preflight: what another daemon's engines hold is no stranger's memory.
    with RuntimeDir(config.runtime_dir, lock_timeout=patience) as runtime:
        checked = look(config, reader)
        _tell(checked.config.warnings, config.logging.format)
        checked.raise_for_errors()
        _serve(checked, reader, runtime, given, verbose=verbose, color=color)
    return ExitCode.OK


def _tell(warnings: Sequence[Problem], form: Literal["text", "json"]) -> None:
    if form == "json":
        for warning in warnings:
            logger.warning("%s", "; ".join((warning.what, *warning.where)))
    elif warnings:
        color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        sys.stderr.write(render_problems(warnings, color, "warning") + "\n")


def _serve(
    checked: Preflight,
    reader: DeviceReader,
    runtime: RuntimeDir,
    given: Sequence[socket.socket],
    *,
    verbose: bool,
    color: bool,
) -> None:
    # Half a second of imports, for which a refusal need not wait.
    import uvloop

    from memoria.cli.screens.screen import make_screen
    from memoria.daemon.daemon import Daemon

    async def serve() -> None:
        daemon = Daemon(checked, reader, runtime, os.environ, given)
        gc.freeze()  # what was made so far stays: no collection needs to look at it again
        gc.set_threshold(OFTEN)
        with make_screen(daemon, verbose=verbose, color=color):
            await daemon.run()

    uvloop.run(serve())
