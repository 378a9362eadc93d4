"""`memoria bench`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memoria.cli import INTERRUPTED
from memoria.cli.client import find_daemon, parsing, request
from memoria.cli.options import Options, command, complete_engine
from memoria.cli.screens.live import StatusLine
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError, UsageError
from memoria.text import suggestion

if TYPE_CHECKING:
    from memoria.admin.status.status import EngineStatus, Status
    from memoria.bench.figures import Phase
    from memoria.bench.load import Engine, Load

BAR = 40  # columns
COUNT = click.IntRange(1)


@command()
@click.argument("engines", nargs=-1, metavar="[ENGINE]...", shell_complete=complete_engine)
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1), help="Of each phase.")
@click.option("--streams", default=16, show_default=True, type=COUNT, help="Concurrent completions.")
@click.option(
    "--prompt", "prompt_words", default=128, show_default=True, type=COUNT, help="Words per prompt."
)
@click.option(
    "--tokens", "max_tokens", default=128, show_default=True, type=COUNT, help="Tokens per completion."
)
@click.option(
    "--clients", "embedders", default=16, show_default=True, type=COUNT, help="Concurrent embedding requests."
)
@click.option("--texts", default=8, show_default=True, type=COUNT, help="Texts per embedding request.")
@click.option("--words", "text_words", default=64, show_default=True, type=COUNT, help="Words per text.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a chart (SVG).")
def bench(
    options: Options, /, engines: tuple[str, ...], plot: Path | None, seconds: float, **sizes: int
) -> int:
    """Put a load on the running daemon: each ready engine alone, then all together.

    Shows texts or tokens per second and the share of them KEPT beside the other engines, the time to an
    answer, to the FIRST token and to each NEXT one. Without names all ready engines are loaded. Exit code 1:
    requests failed. The API key is taken from MEMORIA_KEY: as an argument, other users could see it.

    \b
    Example:  memoria bench --seconds 60 --plot bench.svg
    """
    import asyncio

    from memoria.admin.status.status import Status
    from memoria.bench.load import Endpoint, Load, run_phases
    from memoria.bench.plot import as_svg
    from memoria.cli.screens.bench import render_phases

    if plot is not None:
        _check_plot(plot)
    load = Load(seconds, warm_up=min(3.0, seconds / 4), **sizes)
    socket = find_daemon(options.config).admin_socket
    data = request(socket, "/status")
    with parsing(socket):
        status = Status.from_json(data)
    targets = to_load(status, engines)
    key = os.environ.get("MEMORIA_KEY")
    sha256 = status.certificate.sha256 if status.certificate else None
    endpoint = Endpoint(status.url, {"authorization": f"Bearer {key}"} if key else {}, sha256)
    phases: list[Phase] = []
    interrupted = False

    async def measure(tick: Callable[[str, float], None]) -> None:
        async for phase in run_phases(endpoint, load, targets, tick):
            phases.append(phase)

    with _progress() as tick:
        try:
            asyncio.run(measure(tick))
        except KeyboardInterrupt:  # shown is what was measured until then
            interrupted = True
    if options.json:
        sys.stdout.write(json.dumps(_as_json(status, load, phases), indent=2) + "\n")
    elif phases:
        sys.stdout.write(f"{_title(status)}\n\n{render_phases(phases, load)}\n{_starts(status, targets)}\n")
    sys.stdout.flush()
    if plot is not None and phases:
        _write(plot, as_svg(phases, _title(status)))
    if interrupted:
        sys.stderr.write("interrupted: the unfinished phase does not count\n")
        return INTERRUPTED
    return ExitCode.FAILURE if any(phase.failures for phase in phases) else ExitCode.OK


def to_load(status: Status, names: Sequence[str] = ()) -> list[Engine]:
    """The engines named, or all ready ones. Raises `UsageError` for an unknown name, `UnavailableError` for
    an engine that is not ready."""
    known = [engine.name for engine in status.engines]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no engine `{name}`", hint=suggestion(name, known))
    wanted = [engine for engine in status.engines if not names or engine.name in names]
    late = [engine for engine in wanted if engine.state != "ready"]
    if late and (names or len(late) == len(wanted)):
        raise UnavailableError(
            Problem(
                f"{engine.name} is not ready: {engine.state}",
                hint=f"memoria wake {engine.name}" if engine.on_demand else "memoria status",
            )
            for engine in late
        )
    for engine in late:
        sys.stderr.write(f"skipping {engine.name}: it is {engine.state}\n")
    return [target(engine) for engine in wanted if engine.state == "ready"]


def target(engine: EngineStatus) -> Engine:
    from memoria.bench.load import Engine

    return Engine(engine.name, engine.models[0], "embedding" if engine.runner == "pooling" else "generation")


def _title(status: Status) -> str:
    return f"memoria {status.version} on {', '.join(device.name for device in status.devices)}"


def _starts(status: Status, loaded: Sequence[Engine]) -> str:
    from memoria.cli.screens.status import ready_line, start_parts

    names = {engine.name for engine in loaded}
    lines = [
        f"{e.name} started in {e.start_seconds:.1f} s: {start_parts(e)}"
        for e in status.engines
        if e.start_seconds and e.name in names
    ]
    return "\n".join([f"{ready_line(status)}", *lines])


def _as_json(status: Status, load: Load, phases: Sequence[Phase]) -> dict[str, Any]:
    return {
        "memoria": status.version,
        "devices": [device.name for device in status.devices],
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load": asdict(load),
        "ready_after": status.ready_after,
        "starts": {engine.name: [asdict(span) for span in engine.start_spans] for engine in status.engines},
        "phases": [phase.to_json() for phase in phases],
    }


def _check_plot(path: Path) -> None:
    """Before minutes of measuring."""
    if path.suffix.lower() != ".svg":
        raise UsageError(f"the chart is an SVG: {path.name} must end in .svg")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {path.parent}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MemoriaError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """On standard error: a bar on a terminal, elsewhere a line when a phase begins."""
    if not sys.stderr.isatty():
        begun: list[str] = []

        def announce(name: str, _: float) -> None:
            if name not in begun:
                begun.append(name)
                sys.stderr.write(f"{name} ...\n")

        yield announce
        return
    line, began = StatusLine(sys.stderr), time.monotonic()

    def draw(name: str, part: float) -> None:
        done = round(BAR * part)
        left = (time.monotonic() - began) * (1 / part - 1) if part else None
        line.show(
            f"{name:20} {'━' * done}{'·' * (BAR - done)}" + ("" if left is None else f" {left:4.0f} s left")
        )

    try:
        yield draw
    finally:
        line.clear()
