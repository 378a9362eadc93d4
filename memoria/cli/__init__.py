"""The command line. `main` turns every error that a user can cause into a message and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from memoria.errors import ExitCode, MemoriaError


def main(arguments: Sequence[str] | None = None) -> None:
    """The `memoria` executable. Always ends in `SystemExit`."""
    gc.disable()  # most commands live for a fraction of a second, and their imports make no garbage
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    import click

    from memoria.cli.commands import cli

    try:
        result = cli.main(args=arguments, prog_name="memoria", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "memoria"
        sys.stderr.write(f"error: {error.format_message()}\nhint: {command} --help\n")
        return error.exit_code
    except click.Abort:
        return 130
    except MemoriaError as error:
        if _is_verbose():
            import traceback

            traceback.print_exc()
        from memoria.cli.render_plan import render_problems

        color = sys.stderr.isatty() and "NO_COLOR" not in os.environ and "--no-color" not in sys.argv
        sys.stdout.flush()
        sys.stderr.write(render_problems(error.problems, color) + "\n")
        return error.exit_code
    except BrokenPipeError:  # `memoria status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return int(result or ExitCode.OK)


def _is_verbose() -> bool:
    return "-v" in sys.argv or "--verbose" in sys.argv
