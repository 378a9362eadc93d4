"""The flags that every command takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memoria.errors import ConfigError

if TYPE_CHECKING:
    from memoria.config.model import Config

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Globals:
    """The flags that every command takes, before or after its name."""

    config: Path | None = None
    json: bool = False
    verbose: bool = False
    color: bool | None = None  # None: if the output is a terminal

    @property
    def colored(self) -> bool:
        if self.color is None:
            return sys.stdout.isatty() and "NO_COLOR" not in os.environ
        return self.color

    @property
    def width(self) -> int:
        import shutil

        return shutil.get_terminal_size((80, 24)).columns

    @property
    def line_width(self) -> int | None:
        """Of a terminal; None in a pipe, where a line is read by programs."""
        return self.width if sys.stdout.isatty() else None

    def load(self) -> Config:
        """For a command that starts or plans engines. Raises `ConfigError` with every problem there is."""
        from memoria.config.file import find
        from memoria.config.load import WrongValuesError, load

        try:
            return load(find(self.config, os.environ, Path.cwd()), os.environ)
        except WrongValuesError as error:
            from memoria.plan.plan import limit_problems

            problems = (*error.problems, *limit_problems(error.usable))
            raise ConfigError(problems) from error


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        name = {"no_color": "color"}.get(str(parameter.name), str(parameter.name))
        setattr(ctx.ensure_object(Globals), name, False if name == "color" else value)


def with_globals(command: F) -> F:
    for option in (
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Tracebacks of errors; the engines' logs, inline (run, demo).",
        ),
        click.option("--no-color", is_flag=True, expose_value=False, callback=_remember, help="Plain text."),
        click.option("--json", is_flag=True, expose_value=False, callback=_remember, help="For programs."),
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path, readable=False),  # the loader says it better
            expose_value=False,
            callback=_remember,
            help="Configuration file (else MEMORIA_CONFIG, ./memoria.yaml, /etc/memoria/memoria.yaml).",
        ),
    ):
        command = option(command)
    return command


pass_globals = click.make_pass_decorator(Globals, ensure=True)


def complete_engine(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The engines of the configuration in force, for the shell."""
    from memoria.cli.commands.running import running
    from memoria.errors import MemoriaError

    try:
        names = running(ctx.ensure_object(Globals).config).engines
    except MemoriaError:
        return []
    return [name for name in names if name.startswith(incomplete)]
