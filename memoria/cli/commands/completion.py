"""`memoria completion`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from memoria.cli.options import Options, command
from memoria.errors import ExitCode


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(options: Options, shell: str) -> int:
    """Print a script that completes commands, options and engine names.

    \b
    Example:  memoria completion bash > ~/.local/share/bash-completion/completions/memoria
    """
    script = get_completion_class(shell)
    assert script is not None
    cli = click.get_current_context().find_root().command
    sys.stdout.write(script(cli, {}, "memoria", "_MEMORIA_COMPLETE").source() + "\n")
    return ExitCode.OK
