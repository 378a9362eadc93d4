"""Errors that are shown to a person.

MemoriaError                    exit code
|-- UsageError                   2  a value on the command line is wrong
|-- ConfigError                 78  the configuration is wrong
|-- UnavailableError            69  GPU, vLLM or a port is not there
|   `-- NoGpuError              69  no driver, or one that sees no GPU
|-- MemoryHeldError             75  other processes hold the memory; later it may work
`-- NotRunningError              3  no daemon answers

Every error carries *all* problems found at once; each problem says what is wrong, where, and what to do. Exit
codes follow sysexits.h (EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG) and LSB's "3: program is not running" for
`status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    UNAVAILABLE = 69
    MEMORY_HELD = 75
    CONFIG = 78


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file; `line` and `column` count from 1, as editors do."""

    file: str
    line: int
    column: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f":{self.column}" if self.column else "")


@dataclass(frozen=True, slots=True)
class Problem:
    """`what` is wrong in one sentence, `where` as lines to show, the next step as `hint`."""

    what: str
    where: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def line(self) -> str:
        """On one line and without the hint, for a log."""
        return "; ".join((self.what, *self.where))

    def text(self, label: str = "error:", hint_label: str = "hint:") -> str:
        hint = (f"{hint_label} {self.hint}",) if self.hint else ()
        return "\n".join((f"{label} {self.what}", *(f"  {line}" for line in self.where), *hint))

    __str__ = text


class MemoriaError(Exception):
    """Base of every error that a user can cause; never shown as a traceback."""

    exit_code = ExitCode.FAILURE

    def __init__(self, problems: Problem | str | Iterable[Problem], *, hint: str | None = None) -> None:
        if isinstance(problems, str):
            problems = (Problem(problems, hint=hint),)
        elif isinstance(problems, Problem):
            problems = (problems,)
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n\n".join(str(problem) for problem in self.problems))


class UsageError(MemoriaError):
    exit_code = ExitCode.USAGE


class ConfigError(MemoriaError):
    exit_code = ExitCode.CONFIG


class UnavailableError(MemoriaError):
    exit_code = ExitCode.UNAVAILABLE


class NoGpuError(UnavailableError):
    pass


class SlicedGpuError(UnavailableError):
    """A GPU in MIG mode: its slices are there, it is not."""


class MemoryHeldError(MemoriaError):
    exit_code = ExitCode.MEMORY_HELD


class NotRunningError(MemoriaError):
    exit_code = ExitCode.NOT_RUNNING
