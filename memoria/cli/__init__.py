"""The command line. `main` turns every error into a message and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from memoria.cli.streams import give_up_output, mend_streams
from memoria.errors import ExitCode, MemoriaError, Problem

# As a shell counts a program that SIGPIPE (13) ended: its reader has gone, as in `memoria status | head -1`.
READER_GONE = 128 + 13
INTERRUPTED = 128 + 2
SELDOM = 50_000  # objects until a collection


def main(arguments: Sequence[str] | None = None) -> None:
    """The `memoria` executable. Always ends in `SystemExit`."""
    gc.set_threshold(SELDOM)  # most commands live for a fraction of a second, and imports make no garbage
    mend_streams()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_output()
        code = READER_GONE
    except MemoriaError as error:
        code = _tell(error.problems, error.exit_code, given)
    except Exception as error:
        code = _tell((_unforeseen(error),), ExitCode.FAILURE, given)
        give_up_output()  # perhaps the very reason
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    import click

    from memoria.cli.commands.main import cli

    try:
        result = cli.main(args=arguments, prog_name="memoria", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "memoria"
        sys.stderr.write(f"error: {error.format_message()}\nhint: {command} --help\n")
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except SystemExit:  # click's own, with 1, and in this case alone
        return READER_GONE
    return int(result or ExitCode.OK)


def _tell(problems: Sequence[Problem], code: int, arguments: Sequence[str]) -> int:
    """From within an `except`."""
    if "-v" in arguments or "--verbose" in arguments:
        import traceback

        traceback.print_exc()
    from memoria.cli.screens.plan import render_problems

    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ and "--no-color" not in arguments
    try:
        sys.stdout.flush()
    except OSError:
        give_up_output()
    sys.stderr.write(render_problems(problems, color) + "\n")
    return code


def _unforeseen(error: Exception) -> Problem:
    """An error that no part of memoria has words of its own for."""
    if isinstance(error, FileNotFoundError) and not _has_working_folder():
        return Problem("the working folder is not there any more", hint="go to another one: cd")
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename is not None else ""
        return Problem(f"{about}{error.strerror}", hint="the same command with -v shows where")
    return Problem(
        f"{type(error).__name__}: {error}",
        hint="this is a fault of memoria's: please report it, with what the same command says with -v",
    )


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True
