"""`memoria pull`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from memoria.cli import INTERRUPTED
from memoria.cli.options import Options, command, complete_engine
from memoria.cli.screens.live import Region
from memoria.config.model import Config, EngineConfig
from memoria.errors import ConfigError, ExitCode, MemoriaError, Problem, UnavailableError, UsageError
from memoria.text import duration, size_text, suggestion
from memoria.vllm.facts import FetchProgress

if TYPE_CHECKING:
    from memoria.vllm.fetch.fetcher import Fetcher
    from memoria.vllm.fetch.launch import FetchError

BETWEEN_LINES = 10.0  # seconds, in a pipe


@dataclass(frozen=True, slots=True)
class Pulled:
    """`fetched_bytes`: None where nothing had to come."""

    engine: EngineConfig
    fetched_bytes: int | None = None
    error: FetchError | None = None


class Screen:
    """A line per engine: redrawn on a terminal, elsewhere printed now and then; with --json there are
    none."""

    def __init__(self, engines: Sequence[EngineConfig], options: Options) -> None:
        self._width = max(len(engine.name) for engine in engines)
        self._lines: dict[str, str] = {}
        self._printed: dict[str, float] = {}
        self._silent = options.json
        self._region = Region() if sys.stdout.isatty() and not options.json else None

    def __enter__(self) -> Self:
        if self._region is not None:
            self._region.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._region is not None:
            self._region.__exit__(kind, error, trace)

    def show(self, engine: EngineConfig, text: str, *, end: bool = False) -> None:
        line = self._lines[engine.name] = f"{engine.name:{self._width}}  {engine.model}: {text}"
        now, before = time.monotonic(), self._printed.get(engine.name, -BETWEEN_LINES)
        if self._region is not None:
            self._region.show(list(self._lines.values()))
        elif not self._silent and (end or now - before >= BETWEEN_LINES):
            self._printed[engine.name] = now
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


@command()
@click.argument("engines", nargs=-1, metavar="[ENGINE]...", shell_complete=complete_engine)
@click.option(
    "--export",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Copy the models into FOLDER, for a machine without a network.",
)
def pull(options: Options, engines: tuple[str, ...], export: Path | None) -> int:
    """Fetch the engines' models from the Hugging Face hub: only the files that vLLM loads. Can be repeated:
    what is there is not fetched again, and a file that was cut goes on where it stopped.

    `memoria run` does the same by itself, before an engine's first start. Exit code 69: the hub cannot be
    reached or the disk is full, 78: a model's name, revision or token is wrong.

    \b
    Example:  memoria pull generation
    """
    import asyncio

    config = options.load()
    for name in engines:
        if name not in (known := [engine.name for engine in config.engines]):
            raise UsageError(f"there is no engine `{name}`", hint=suggestion(name, known))
    wanted = [engine for engine in config.engines if not engines or engine.name in engines]
    if export is not None and (apart := [e.name for e in wanted if e.vllm_args.get("download_dir")]):
        raise UsageError(
            f"`download_dir` of {', '.join(apart)} is a folder of its own", hint="copy that folder itself"
        )
    try:
        done = asyncio.run(_pull_all(wanted, Screen(wanted, options)))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: `memoria pull` goes on where it stopped\n")
        return INTERRUPTED
    if options.json:
        rows = [
            {
                "engine": one.engine.name,
                "model": one.engine.model,
                "fetched_bytes": one.fetched_bytes or 0,
                "problem": one.error.diagnosis.cause if one.error else None,
            }
            for one in done
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    sys.stdout.flush()
    if failed := [one for one in done if one.error]:
        raise _as_error(config, failed)
    if export is not None:
        _export(wanted, export)
        if not options.json:
            sys.stdout.write(f"on the other machine: HF_HOME={export} HF_HUB_OFFLINE=1 memoria run\n")
    return ExitCode.OK


async def _pull_all(engines: Sequence[EngineConfig], screen: Screen) -> list[Pulled]:
    import asyncio

    from memoria.vllm.fetch.fetcher import Fetcher

    fetcher = Fetcher()
    with screen:
        return list(await asyncio.gather(*(_pull(engine, fetcher, screen) for engine in engines)))


async def _pull(engine: EngineConfig, fetcher: Fetcher, screen: Screen) -> Pulled:
    import asyncio

    from memoria.vllm.fetch.launch import FetchError
    from memoria.vllm.fetch.repository import is_here, repositories

    environ = {**os.environ, **engine.env}
    wanted = repositories(engine.model, engine.vllm_args, environ)
    if not wanted:
        screen.show(engine, "not of the hub, nothing to fetch", end=True)
        return Pulled(engine)
    if all(await asyncio.to_thread(lambda: [is_here(one) for one in wanted])):
        screen.show(engine, "is here", end=True)
        return Pulled(engine)
    began = time.monotonic()

    def on_progress(progress: FetchProgress) -> None:
        screen.show(engine, str(progress))

    try:
        fetched = await fetcher.fetch(wanted, environ, on_progress)
    except FetchError as error:
        screen.show(engine, "failed", end=True)
        return Pulled(engine, error=error)
    took = duration(time.monotonic() - began)
    screen.show(engine, f"{size_text(fetched.total_bytes)} in {took}", end=True)
    return Pulled(engine, fetched.total_bytes)


def _as_error(config: Config, failed: Sequence[Pulled]) -> MemoriaError:
    """Of the configuration, if a person must change something; every problem at once."""
    problems, final = [], False
    for one in failed:
        assert one.error is not None
        mark = config.where("engines", one.engine.name, "model")
        where = f"{mark}  {one.engine.name}.model" if mark else f"{one.engine.name}.model"
        problems.append(Problem(one.error.diagnosis.cause, (where,), one.error.diagnosis.hint))
        final = final or one.error.diagnosis.retry == "no"
    return (ConfigError if final else UnavailableError)(problems)


def _export(engines: Sequence[EngineConfig], folder: Path) -> None:
    """As a folder for HF_HOME. Links stay links: files would double."""
    from memoria.vllm.fetch.repository import repositories

    for engine in engines:
        for one in repositories(engine.model, engine.vllm_args, {**os.environ, **engine.env}):
            target = folder / "hub" / one.folder.name
            try:
                if target.exists():
                    shutil.rmtree(target)
                shutil.copytree(
                    one.folder, target, symlinks=True, ignore=shutil.ignore_patterns("*.incomplete")
                )
            except OSError as error:
                raise UnavailableError(f"cannot write {target}: {error.strerror or error}") from None
