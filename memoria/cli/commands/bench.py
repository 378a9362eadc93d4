"""`memoria bench`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memoria.admin.status.status import EngineStatus, Status
from memoria.bench.clients import Endpoint, Engine, Load
from memoria.bench.figures import Phase
from memoria.bench.load import run_phases
from memoria.bench.plot import as_svg
from memoria.cli.client import ask, understood
from memoria.cli.commands.running import running
from memoria.cli.screens.bench import render_phases
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError, UsageError
from memoria.text import suggestion

INTERRUPTED = 130  # as the shell has it for SIGINT


def run_bench(
    flag: Path | None,
    names: Sequence[str],
    load: Load,
    *,
    key: str | None,
    plot: Path | None,
    as_json: bool,
    color: bool,
) -> int:
    """Loads the engines with these names, or all that are ready: each alone, then together. Ctrl-C ends it
    with what was measured so far. Raises `UnavailableError` where there is none to load."""
    if plot is not None:
        _check_plot(plot)
    socket = running(flag).admin_socket
    data = ask(socket, "/status")
    with understood(socket):
        status = Status.from_json(data)
    engines = to_load(status, names)
    endpoint = Endpoint(status.url, {"authorization": f"Bearer {key}"} if key else {})
    phases: list[Phase] = []
    interrupted = False
    with _progress(color) as tick:
        try:
            asyncio.run(_measure(endpoint, load, engines, tick, phases))
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        sys.stdout.write(json.dumps(_as_json(status, load, phases), indent=2) + "\n")
    elif phases:
        sys.stdout.write(f"{_title(status)}\n\n{render_phases(phases, load)}\n")
    sys.stdout.flush()
    if plot is not None and phases:
        _write(plot, as_svg(phases, _title(status)))
    if interrupted:
        sys.stderr.write("interrupted: the phase under way does not count\n")
        return INTERRUPTED
    return ExitCode.FAILURE if any(phase.failures for phase in phases) else ExitCode.OK


def to_load(status: Status, names: Sequence[str] = ()) -> list[Engine]:
    """Engines by these names, all ready ones without a name. Raises `UsageError` for a name that is none,
    `UnavailableError` for an engine that is not ready."""
    known = [engine.name for engine in status.engines]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no engine `{name}`", hint=suggestion(name, known))
    wanted = [engine for engine in status.engines if not names or engine.name in names]
    late = [engine for engine in wanted if engine.state != "ready"]
    if late and (names or len(late) == len(wanted)):
        raise UnavailableError(
            [Problem(f"{engine.name} is not ready: {engine.state}", hint="memoria status") for engine in late]
        )
    for engine in late:
        sys.stderr.write(f"{engine.name} is left out: it is {engine.state}\n")
    return [target(engine) for engine in wanted if engine.state == "ready"]


def target(engine: EngineStatus) -> Engine:
    return Engine(engine.name, engine.models[0], "embedding" if engine.runner == "pooling" else "generation")


async def _measure(
    endpoint: Endpoint,
    load: Load,
    engines: Sequence[Engine],
    tick: Callable[[str, float], None],
    phases: list[Phase],
) -> None:
    async for phase in run_phases(endpoint, load, engines, tick):
        phases.append(phase)


def _title(status: Status) -> str:
    return f"memoria {status.version} on {', '.join(device.name for device in status.devices)}"


def _as_json(status: Status, load: Load, phases: Sequence[Phase]) -> dict[str, Any]:
    return {
        "memoria": status.version,
        "devices": [device.name for device in status.devices],
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load": asdict(load),
        "phases": [phase.to_json() for phase in phases],
    }


def _check_plot(path: Path) -> None:
    """Before minutes of measuring."""
    if path.suffix.lower() != ".svg":
        raise UsageError(f"the picture is an SVG: {path.name} must end in .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MemoriaError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _progress(color: bool) -> Iterator[Callable[[str, float], None]]:
    """On standard error: a bar on a terminal, elsewhere a line when a phase begins."""
    if not sys.stderr.isatty():
        begun: list[str] = []

        def tell(name: str, _: float) -> None:
            if name not in begun:
                begun.append(name)
                sys.stderr.write(f"{name} ...\n")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=not color)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda name, part: progress.update(task, description=name, completed=part)
