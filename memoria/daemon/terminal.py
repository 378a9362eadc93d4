"""The terminal that the daemon was started in, if there is one: SIGHUP means two things.

The kernel sends it when a terminal closes, and people send it to ask for a reload. Told apart by whether the
terminal that was there is there no more. A daemon whose terminal has closed stops, as it would on Ctrl-C:
nobody sees it any more, and it holds the GPU. `nohup` says that it shall not, by having SIGHUP ignored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios

# The terminal was hung up, or this process never had one (tty(4)). Any other failure, such as a want of
# descriptors, says nothing of it.
_GONE = (errno.ENXIO, errno.EIO)


class Terminal:
    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._counts = not ignored and _is_there()

    def is_gone(self) -> bool:
        return self._counts and not _is_there()

    def let_go(self) -> None:
        """It is gone: what is still written to it goes nowhere. It would fail, up to Python's own last flush,
        which makes the exit code 120."""
        with contextlib.suppress(OSError):  # out of descriptors
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            for output in filter(_is_hung_up, (1, 2)):
                os.dup2(null, output)
            os.close(null)


def _is_hung_up(output: int) -> bool:
    try:
        termios.tcgetattr(output)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False


def _is_there() -> bool:
    """Whether this process has a controlling terminal; one that was hung up cannot be opened."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in _GONE
    return True
