"""The daemon's signals, and the terminal that decides what SIGHUP means.

SIGINT and SIGTERM stop; the second one kills. SIGHUP has two meanings: the kernel sends it when a terminal
closes, people send it for a reload. A daemon whose terminal has closed stops, as on Ctrl-C: it would go on
unseen and hold the GPU. `nohup` prevents that by having SIGHUP ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import termios
from collections.abc import Callable, Iterator

# The terminal was hung up, or this process never had one (tty(4)). Other failures, such as being out of
# descriptors, do not count.
_GONE = (errno.ENXIO, errno.EIO)


@contextlib.contextmanager
def handle_signals(*, stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """Handles them in the running event loop."""
    loop, terminal = asyncio.get_running_loop(), Terminal()

    def hang_up() -> None:
        if terminal.is_gone():
            terminal.detach()
            stop()
        else:
            reload()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


class Terminal:
    """The terminal that the process was started in, if there is one. Create it before SIGHUP is handled."""

    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._counts = not ignored and _exists()

    def is_gone(self) -> bool:
        return self._counts and not _exists()

    def detach(self) -> None:
        """Sends further output to /dev/null. Writing to a closed terminal fails, up to Python's own last
        flush, which makes the exit code 120."""
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


def _exists() -> bool:
    """Whether this process has a controlling terminal; one that was hung up cannot be opened."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in _GONE
    return True
