"""The command line. `main` turns every error into a message and an exit code."""

from __future__ import annotations

import codecs
import gc
import os
import sys
from collections.abc import Sequence

from memoria.errors import ExitCode, MemoriaError, Problem

READER_GONE = 128 + 13  # as a shell reports death by SIGPIPE: `memoria status | head -1`
INTERRUPTED = 128 + 2  # SIGINT
SELDOM = 50_000  # objects until a garbage collection
# The characters of the screens, for a terminal that has only ASCII.
_ASCII = {"█": "#", "▒": "=", "·": ".", "…": "...", "–": "-", "—": "-", "×": "x", "━": "="}
_LAST_STANDARD = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `memoria` executable. Always ends in `SystemExit`."""
    gc.set_threshold(SELDOM)  # most commands live for a fraction of a second, and imports make no garbage
    repair_streams()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        code = READER_GONE
    except MemoriaError as error:
        code = _report(error.problems, error.exit_code, given)
    except Exception as error:
        code = _report((_unexpected(error),), ExitCode.FAILURE, given)
        discard_output()  # it may be the cause
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    import click

    from memoria.cli.commands import cli

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
    except SystemExit:  # raised by click with 1, only when the reader has gone
        return READER_GONE
    return int(result or ExitCode.OK)


def _report(problems: Sequence[Problem], code: int, arguments: Sequence[str]) -> int:
    """Writes the problems to standard error; with -v also the traceback of the exception being handled."""
    if "-v" in arguments or "--verbose" in arguments:
        import traceback

        traceback.print_exc()
    from memoria.cli.screens.layout import render_problems

    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ and "--no-color" not in arguments
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    sys.stderr.write(render_problems(problems, color) + "\n")
    return code


def _unexpected(error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return Problem("the working directory no longer exists", hint="change to another one: cd")
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename is not None else ""
        return Problem(f"{file}{error.strerror}", hint="run the same command with -v for the traceback")
    return Problem(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in memoria: please report it with the output of the same command with -v",
    )


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def repair_streams() -> None:
    """Makes standard output and error writable whatever they are.

    A stream closed before the start discards everything: its descriptor must not go to the next file opened,
    since engines would write into that. Characters that an encoding lacks are replaced."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if stream.encoding.lower() != "utf-8" and hasattr(stream, "reconfigure"):
            codecs.register_error("ascii_art", _in_ascii)
            stream.reconfigure(errors="ascii_art")


def discard_output() -> None:
    """Drops what standard output still buffers, or Python would try to write it again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in wrong), error.end
