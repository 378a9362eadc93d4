"""A daemon whose output nothing reads: a terminal that was stopped with Ctrl-S, a journal that is stuck."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from tests.integration.daemon import PATIENCE, Box, until
from tests.integration.http_client import ask

PROMPT = {"model": "writer", "prompt": "a"}


def full_pipe() -> tuple[int, int]:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    return ours, filled(theirs)


def stopped_terminal() -> tuple[int, int]:
    ours, theirs = pty.openpty()
    return ours, filled(theirs)


def filled(descriptor: int) -> int:
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"\0")
    os.set_blocking(descriptor, True)
    return descriptor


@pytest.fixture(params=[full_pipe, stopped_terminal], ids=["a pipe", "a terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[int]:
    """What takes no byte more."""
    make: Callable[[], tuple[int, int]] = request.param
    ours, theirs = make()
    yield theirs
    os.close(ours)


@pytest.mark.parametrize("form", ["text", "json"])
def test_output_that_nothing_reads_stops_nothing(box: Box, unread: int, form: str) -> None:
    box.configure()
    process = subprocess.Popen(
        [*box.command, "run"],
        cwd=box.folder,
        env=box.env({"LOG_FORMAT": form}),
        stdin=subprocess.DEVNULL,
        stdout=unread,
        stderr=unread,
    )
    os.close(unread)
    try:
        until(lambda: box.call("status").returncode == 0)
        until(lambda: ask(box.ports.main, "GET", "/readyz").status == 200)
        process.send_signal(signal.SIGHUP)  # says more
        assert ask(box.ports.main, "POST", "/v1/completions", PROMPT).status == 200
        with closing(urllib.request.urlopen(f"http://127.0.0.1:{box.ports.main}/metrics")) as answer:
            text = answer.read().decode()
        assert re.search(r"^memoria_output_dropped_total 0$", text, re.M)  # a few lines may wait
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert box.survivors() == []
    finally:
        process.kill()
        process.wait()
