"""Standard output and error as they are found: closed, full, or unable to say every character."""

from __future__ import annotations

import codecs
import os
import sys

# What the screens draw, for a terminal that has ASCII alone.
_PLAIN = {"█": "#", "▒": "=", "·": ".", "…": "...", "–": "-", "—": "-", "×": "x"}
_LAST_STANDARD = 2


def mend_streams() -> None:
    """From now on nothing that is written fails for its characters, and a stream that was closed before the
    start swallows it all. Its number must not go to the next file: engines would write into that."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if stream.encoding.lower() != "utf-8" and hasattr(stream, "reconfigure"):
            codecs.register_error("plain", _in_plain_characters)
            stream.reconfigure(errors="plain")


def give_up_output() -> None:
    """What standard output still holds could not be written, and Python is not to try again as it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in wrong), error.end
