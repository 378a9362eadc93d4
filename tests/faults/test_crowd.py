"""A thousand heads that never end and two hundred readers that never read, against a real daemon."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median

import psutil
import pytest

from tests.faults.report import Figure
from tests.faults.traffic import Traffic, percentile
from tests.integration.daemon import Box, RunningDaemon, until

pytestmark = pytest.mark.faults

HEADS, READERS = 1000, 200
HEAD_S, READER_S = 10.0, 60.0  # what they are given
LATE_S = 10.0  # no more than that above it: the daemon looks every second, and the machine is busy with them
ROUNDS, MEASURED_S = 5, 6.0  # so that all of the crowd is there while others are measured
MOST_MORE = 1.1  # others' p99
MOST_MEMORY = 100 << 20
# 1 MB of answer each: several times what the kernel's buffers on both sides hold for a small window
LONG = json.dumps({"prompt": "a", "max_tokens": 1000, "n": 400}).encode()


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    return daemon


def test_a_crowd_that_stalls_costs_others_nothing(daemon: RunningDaemon, figure: Figure) -> None:
    """With the crowd and without it by turns: what rounds without it differ by is the machine's doing."""
    process = psutil.Process(daemon.pid)
    _measure(daemon)  # warm
    memory = most = process.memory_info().rss
    usual, crowded = [], []
    for _ in range(ROUNDS):
        usual.append(_measure(daemon))
        with _readers(daemon), _heads(daemon):
            crowded.append(_measure(daemon))
            most = max(most, process.memory_info().rss)
    for row in (30, 31):
        figure(row, "others' p99 without the crowd, median", median(usual), "ms")
        figure(row, "differs between rounds by", max(usual) - min(usual), "ms")
        figure(row, "others' p99 with it, median", median(crowded), "ms")
        figure(row, "daemon grew by", (most - memory) / 2**20, "MiB")
    assert most - memory < MOST_MEMORY
    assert median(crowded) <= MOST_MORE * median(usual) + (max(usual) - min(usual))


def test_a_crowd_that_stalls_is_cut_in_time(daemon: RunningDaemon, figure: Figure) -> None:
    """Neither earlier than it was promised, nor much later, each one counted."""
    process = psutil.Process(daemon.pid)
    memory = process.memory_info().rss
    with _readers(daemon) as readers, _heads(daemon) as heads:
        closed = _lifetimes(heads, HEAD_S + LATE_S, each=_send_a_byte)
        cut = _lifetimes(readers, READER_S + LATE_S)
        grown = process.memory_info().rss - memory
    for row, name, seconds in ((31, "heads closed after", closed), (30, "readers cut after", cut)):
        figure(row, f"{len(seconds)} {name} at least", min(seconds), "s")
        figure(row, f"{len(seconds)} {name} at most", max(seconds), "s")
    assert min(closed) >= HEAD_S
    assert min(cut) >= READER_S
    assert grown < MOST_MEMORY
    until(lambda: daemon.engine("generation").in_flight == 0)


class Stalled:
    """One connection, since when it is there, and when at the latest nothing moved in it any more."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.since = connection, time.monotonic()
        self.settled = self.since


@contextmanager
def _readers(daemon: RunningDaemon) -> Iterator[list[Stalled]]:
    """Until what the engine made for them is on its way as far as it gets."""
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(LONG)
    readers = []
    for _ in range(READERS):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", daemon.box.ports.main))
        connection.sendall(head + LONG)
        readers.append(Stalled(connection))
    try:
        until(lambda: daemon.engine("generation").in_flight == READERS)
        engine, before = psutil.Process(daemon.leader("generation")), -1.0
        while (now := sum(engine.cpu_times()[:2])) - before > 0.01:
            before = now
            time.sleep(0.5)
        settled = time.monotonic()
        for reader in readers:
            reader.settled = settled
        yield readers
    finally:
        _close(readers)
    until(lambda: daemon.engine("generation").in_flight == 0)


@contextmanager
def _heads(daemon: RunningDaemon) -> Iterator[list[Stalled]]:
    heads = []
    try:
        for _ in range(HEADS):
            heads.append(Stalled(socket.create_connection(("127.0.0.1", daemon.box.ports.main))))
            heads[-1].socket.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        yield heads
    finally:
        _close(heads)


def _close(crowd: Sequence[Stalled]) -> None:
    for stalled in crowd:
        stalled.socket.close()


def _measure(daemon: RunningDaemon) -> float:
    """The p99 of embeddings, in milliseconds."""
    with Traffic(daemon.box.ports.main, embeddings=4) as traffic:
        time.sleep(MEASURED_S)
    assert traffic.failures() == {}
    return percentile(traffic.seconds("embeddings"), 0.99) * 1000


def _send_a_byte(connection: socket.socket) -> None:
    """As a slow loris does now and then."""
    with suppress(OSError):  # it is closed already, as the next look will tell
        connection.send(b"a")


def _lifetimes(
    crowd: Sequence[Stalled], within: float, each: Callable[[socket.socket], None] = lambda _: None
) -> list[float]:
    """How long memoria bore each of them, in seconds. Fails when one that is settled is there for longer."""
    poller = select.poll()
    for stalled in crowd:
        poller.register(stalled.socket, select.POLLRDHUP)  # an error is always reported
    left = {stalled.socket.fileno(): stalled for stalled in crowd}
    seconds = []
    while left:
        for number, _ in poller.poll(20):
            poller.unregister(number)
            seconds.append(time.monotonic() - left.pop(number).since)
        for stalled in left.values():
            assert time.monotonic() - stalled.settled < within, f"{len(left)} are still there"
            each(stalled.socket)
    return seconds
