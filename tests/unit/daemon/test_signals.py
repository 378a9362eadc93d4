"""SIGHUP's two meanings, distinguished by the terminal alone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

SCRIPT = """
import fcntl, os, resource, sys, termios
from memoria.daemon.signals import Terminal

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
terminal = Terminal()
there = terminal.is_gone()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(there, terminal.is_gone())
"""


def test_a_terminal_that_cannot_be_opened_without_descriptors_is_not_gone() -> None:
    """Else a reload while memoria has no descriptor left would stop it."""
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdin=slave,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    os.close(slave)
    os.close(master)
    assert done.stdout == "False False\n", done.stderr
