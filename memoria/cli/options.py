"""Options common to all commands."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memoria.errors import ConfigError, MemoriaError

if TYPE_CHECKING:
    from memoria.config.model import Config

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Options:
    """Values of the common options, given before or after the command's name."""

    config: Path | None = None
    json: bool = False
    verbose: bool = False
    color: bool | None = None  # None: if standard output is a terminal

    @property
    def colored(self) -> bool:
        if self.color is None:
            return sys.stdout.isatty() and "NO_COLOR" not in os.environ
        return self.color

    @property
    def width(self) -> int:
        return shutil.get_terminal_size((80, 24)).columns

    @property
    def line_width(self) -> int | None:
        """Columns of a terminal; None in a pipe, where programs read lines."""
        return self.width if sys.stdout.isatty() else None

    def load(self) -> Config:
        """Loads the configuration for a command that starts or plans engines. Raises `ConfigError` with every
        problem, also those of the plan that the valid values allow to find."""
        from memoria.config.file import find
        from memoria.config.load import WrongValuesError, load

        try:
            return load(find(self.config, os.environ, Path.cwd()), os.environ)
        except WrongValuesError as error:
            from memoria.plan.plan import limit_problems

            problems = (*error.problems, *limit_problems(error.usable))
            raise ConfigError(problems) from error


def _store(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        name = {"no_color": "color"}.get(str(parameter.name), str(parameter.name))
        setattr(ctx.ensure_object(Options), name, False if name == "color" else value)


def common_options(function: F) -> F:
    for option in (
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_store,
            help="Show tracebacks of errors, and the engines' logs (run, demo).",
        ),
        click.option("--no-color", is_flag=True, expose_value=False, callback=_store, help="Plain text."),
        click.option("--json", is_flag=True, expose_value=False, callback=_store, help="JSON output."),
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path, readable=False),  # the loader's message is better
            expose_value=False,
            callback=_store,
            help="Configuration file (else MEMORIA_CONFIG, ./memoria.yaml, /etc/memoria/memoria.yaml).",
        ),
    ):
        function = option(function)
    return function


def command(**settings: Any) -> Callable[[Callable[..., int]], click.Command]:
    """A decorator as `click.command`; the command also has the common options, and gets their values as its
    first argument. Its result is the exit code."""
    pass_options = click.make_pass_decorator(Options, ensure=True)
    return lambda function: click.command(**settings)(common_options(pass_options(function)))


def complete_engine(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion: the engines of the configuration in force."""
    from memoria.cli.client import find_daemon

    try:
        names = find_daemon(ctx.ensure_object(Options).config).engines
    except MemoriaError:
        return []
    return [name for name in names if name.startswith(incomplete)]
