"""`memoria completion`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from memoria.errors import ExitCode


def print_completion(cli: click.Command, shell: str) -> int:
    script = get_completion_class(shell)
    assert script is not None
    sys.stdout.write(script(cli, {}, "memoria", "_MEMORIA_COMPLETE").source() + "\n")
    return ExitCode.OK
