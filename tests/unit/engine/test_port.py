"""Who listens on a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from memoria.engine.process.port import listens, problem_of

LISTENS = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    input()
"""


def test_only_a_process_that_listens_there_is_taken_for_the_one() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as engine,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        assert engine.stdout is not None
        port, others = int(engine.stdout.readline()), own.getsockname()[1]
        assert listens({engine.pid}, port)
        assert listens({engine.pid, os.getpid()}, others)
        assert not listens({engine.pid}, others)
        assert not listens({os.getpid()}, port)
        engine.kill()
    assert not listens({engine.pid}, port)


def test_a_port_that_was_given_back_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
        problem = problem_of(port)
        assert problem is not None
        assert f"pid {os.getpid()} " in problem.where[0]
    assert problem_of(port) is None
