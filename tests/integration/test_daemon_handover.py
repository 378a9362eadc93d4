"""A daemon that is restarted while others connect: nobody is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from memoria.errors import ExitCode
from tests.integration.daemon import PATIENCE, Box, until

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}
# As systemd does it (sd_listen_fds(3)): descriptors from 3 on, and the pid of the process that execs.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "memoria", "run"])
"""


class Callers:
    """Connects again and again; `refused` counts the times that nobody listened."""

    def __init__(self, port: int) -> None:
        self._port, self._stop = port, threading.Event()
        self.connected = self.refused = 0
        self._thread = threading.Thread(target=self._call)

    def _call(self) -> None:
        while not self._stop.wait(0.005):
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE).close()
                self.connected += 1
            except ConnectionRefusedError:
                self.refused += 1

    @classmethod
    @contextmanager
    def at(cls, port: int) -> Iterator[Callers]:
        callers = cls(port)
        callers._thread.start()
        try:
            yield callers
        finally:
            callers._stop.set()
            callers._thread.join()


def test_the_next_daemon_takes_over_and_no_connection_is_refused(box: Box) -> None:
    box.configure()
    first = box.start()
    first.until_ready()
    box.vllm.set_faults("generation", token_seconds=0.1)
    with Callers.at(box.ports.main) as callers:
        second = box.start("--take-over")
        assert first.exit_code() == 0
        second.told("generation", "ready")
    print(f"{callers.connected} connections while one daemon took over, {callers.refused} refused")
    assert callers.refused == 0
    assert callers.connected > 0
    second.until_ready()
    assert second.ask("POST", "/v1/completions", PROMPT).status == 200
    assert second.ask("GET", "/livez", port=box.ports.embedding).status == 200
    assert second.stop() == 0
    assert box.survivors() == []


def test_a_wrong_file_takes_nothing_over(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    box.file.write_text(box.file.read_text().replace("0.60", "0.90"))
    done = box.call("run", "--take-over")
    assert done.returncode == ExitCode.CONFIG
    assert "fractions add up to" in done.stderr
    assert daemon.ask("GET", "/readyz").status == 200


def test_without_a_daemon_there_is_nothing_to_take_over(box: Box) -> None:
    box.configure()
    done = box.call("run", "--take-over")
    assert done.returncode == ExitCode.NOT_RUNNING
    assert "hint: start it without --take-over" in done.stderr


def test_a_socket_of_systemds_is_served_and_outlives_the_daemon(box: Box) -> None:
    """What waits in the kernel's queue while there is no daemon is answered by the next one."""
    box.configure()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = box.file.read_text()
        box.file.write_text(text.replace(f"listen: 127.0.0.1:{box.ports.main}", f"listen: 127.0.0.1:{port}"))
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as early:
                early.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                daemon = activated(box, listener)
                assert early.recv(12) == b"HTTP/1.1 200"
            until(lambda: bool(box.vllm.events("spawned")))
            for process in box.vllm.events("spawned"):
                assert_not_passed_on(process.pid)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE) == 0


def activated(box: Box, listener: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", ACTIVATE, str(listener.fileno())],
        cwd=box.folder,
        env=box.env({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
    )


def assert_not_passed_on(pid: int) -> None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:  # noqa: PTH123
            assert b"LISTEN_" not in environ.read()
    except (FileNotFoundError, ProcessLookupError):
        assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110
