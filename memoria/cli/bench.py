"""`memoria bench`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memoria.admin.status import EngineStatus, Status
from memoria.bench.figures import Phase
from memoria.bench.load import Endpoint, Engine, Load, run_phase
from memoria.bench.plot import as_svg
from memoria.cli.client import ask, understood
from memoria.cli.render_bench import render_phases
from memoria.cli.running import running
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError

ALONE, TOGETHER = "{} alone", "together"


def run_bench(
    flag: Path | None, load: Load, *, key: str | None, plot: Path | None, as_json: bool, color: bool
) -> int:
    """Loads the first ready engine of each kind: alone, and where there are both, together. Raises
    `UnavailableError` where none is ready."""
    socket = running(flag).admin_socket
    data = ask(socket, "/status")
    with understood(socket):
        status = Status.from_json(data)
    embedding, generation = _ready(status, "pooling"), _ready(status, "generate")
    if embedding is None and generation is None:
        raise UnavailableError(Problem("no engine is ready", hint="memoria status"))
    endpoint = Endpoint(status.url, {"authorization": f"Bearer {key}"} if key else {})
    with _progress(color) as tick:
        phases = asyncio.run(measure(endpoint, load, embedding, generation, tick))
    if plot is not None:
        _write(plot, as_svg(phases, f"memoria {status.version}, {status.devices[0].name}"))
    if as_json:
        sys.stdout.write(json.dumps([phase.to_json() for phase in phases], indent=2) + "\n")
    else:
        sys.stdout.write(render_phases(phases) + "\n")
    return ExitCode.FAILURE if any(phase.failures for phase in phases) else ExitCode.OK


async def measure(
    endpoint: Endpoint,
    load: Load,
    embedding: Engine | None,
    generation: Engine | None,
    tick: Callable[[str, float], None] = lambda _, __: None,
) -> list[Phase]:
    """`tick` is told the phase, and how much of all phases is over (0 to 1)."""
    wanted: list[tuple[str, Engine | None, Engine | None]] = []
    if embedding:
        wanted.append((ALONE.format(embedding.name), embedding, None))
    if generation:
        wanted.append((ALONE.format(generation.name), None, generation))
    if embedding and generation:
        wanted.append((TOGETHER, embedding, generation))
    phases = []
    for number, (name, first, second) in enumerate(wanted):

        def share(part: float, name: str = name, number: int = number) -> None:
            tick(name, (number + part) / len(wanted))

        phases.append(await run_phase(name, endpoint, load, embedding=first, generation=second, tick=share))
    return phases


def _ready(status: Status, runner: str) -> Engine | None:
    def answers(engine: EngineStatus) -> bool:
        return engine.runner == runner and engine.state == "ready"

    return next((Engine(e.name, e.models[0]) for e in status.engines if answers(e)), None)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MemoriaError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _progress(color: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=not color)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda name, part: progress.update(task, description=name, completed=part)
