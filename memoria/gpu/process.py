"""Who a process is, as far as another user may know it."""

from __future__ import annotations

import psutil


def describe(pid: int) -> tuple[str | None, str | None]:
    """User and command of a process; None for what a vanished or foreign process does not tell."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return _user(process), _command(process)
    except psutil.Error:
        return None, None


def _user(process: psutil.Process) -> str | None:
    try:
        return process.username()
    except psutil.Error:
        return None


def _command(process: psutil.Process) -> str | None:
    try:
        return short_command(process.cmdline()) or process.name()
    except psutil.Error:
        return None


def short_command(argv: list[str]) -> str:
    """Program and what it runs (`python train.py`, `python -m vllm.entrypoints.openai.api_server`), nothing
    after that: arguments can hold keys, and this text goes to logs and to the status page."""
    if not argv:
        return ""
    words = [argv[0].rsplit("/", 1)[-1]]
    if argv[1:2] == ["-m"]:
        words += argv[1:3]
    elif len(argv) > 1 and not argv[1].startswith("-"):
        words.append(argv[1].rsplit("/", 1)[-1])
    # A process chooses its own argv: no control characters from it may reach a terminal.
    return "".join(char if char.isprintable() else "?" for char in " ".join(words))[:60].rstrip()
