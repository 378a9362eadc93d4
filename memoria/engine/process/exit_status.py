"""How a process ended."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The code it exited with, or the number of the signal that ended it; neither if that is unknown."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_returncode(cls, returncode: int) -> Self:
        """By the convention of `subprocess` and `multiprocessing`: -N is signal N."""
        return cls(signal=-returncode) if returncode < 0 else cls(code=returncode)

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return "ended" if self.code is None else f"exited {self.code}"


def signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
