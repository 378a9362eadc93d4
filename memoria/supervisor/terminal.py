"""The terminal that the daemon was started in, if there is one: SIGHUP means two things.

The kernel sends it when a terminal closes, and people send it to ask for a reload. Told apart by whether the
terminal that was there is there no more. A daemon whose terminal has closed stops, as it would on Ctrl-C:
nobody sees it any more, and it holds the GPU. `nohup` says that it shall not, by having SIGHUP ignored.
"""

from __future__ import annotations

import os
import signal


class Terminal:
    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._counts = not ignored and _answers()

    def is_gone(self) -> bool:
        return self._counts and not _answers()


def _answers() -> bool:
    """Whether this process has a controlling terminal (tty(4)); one that was hung up cannot be opened."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
