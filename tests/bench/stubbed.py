"""Figures of memoria alone: its engines are stubs that answer at once."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.daemon import Box, RunningDaemon
from tests.stub_nvml import build_library

BODY = json.dumps({"model": "embedder", "input": "a short text"})


def status(times: int = 40) -> None:
    """While all is well, and while an engine's processes stand still."""
    with _daemon() as daemon:
        _ask_for_status(daemon, 5)  # warm-up
        for what in ("all is well", "an engine hangs"):
            print(f"{what}: {_milliseconds(_ask_for_status(daemon, times))}")
            commands = [_command(daemon) for _ in range(11)]
            print(f"  `memoria status` median {statistics.median(commands):.3f} s, max {max(commands):.3f} s")
            os.kill(daemon.leader("generation"), signal.SIGSTOP)


def relay(rounds: int = 6, seconds: float = 5.0) -> None:
    """Embeddings over one connection, alone and beside a scrape of `/metrics` each second, in turns."""
    with _daemon() as daemon:
        main = daemon.box.ports.main
        _asked(main, 1.0)  # warm-up
        alone: list[float] = []
        scraped: list[float] = []
        for _ in range(rounds):
            alone += _asked(main, seconds)
            with _scraped(main):
                scraped += _asked(main, seconds)
        print(f"alone:               {_microseconds(alone)}")
        print(f"a scrape per second: {_microseconds(scraped)}")


@contextmanager
def _daemon() -> Iterator[RunningDaemon]:
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder), build_library(Path(folder)))
        box.configure()
        try:
            daemon = box.start()
            daemon.until_ready()
            yield daemon
        finally:
            box.close()


def _ask_for_status(daemon: RunningDaemon, times: int) -> list[float]:
    def ask() -> None:
        connection = http.client.HTTPConnection("memoria")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(daemon.box.runtime / "admin.sock"))
        connection.request("GET", "/status")
        assert len(json.loads(connection.getresponse().read())["engines"]) == 2
        connection.close()

    return [_timed(ask) for _ in range(times)]


def _command(daemon: RunningDaemon) -> float:
    return _timed(lambda: daemon.box.call("status"))


def _asked(port: int, seconds: float) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask() -> None:
        connection.request("POST", "/v1/embeddings", BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)

    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        times.append(_timed(ask))
    connection.close()
    return times


@contextmanager
def _scraped(port: int) -> Iterator[None]:
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            connection.close()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _milliseconds(times: list[float]) -> str:
    return f"status median {statistics.median(times) * 1000:.1f} ms, max {max(times) * 1000:.1f} ms"


def _microseconds(times: list[float]) -> str:
    p50, p99, p999 = (sorted(times)[int(len(times) * share)] * 1e6 for share in (0.5, 0.99, 0.999))
    return f"p50 {p50:.0f} us, p99 {p99:.0f} us, p99.9 {p999:.0f} us of {len(times)} requests"
