"""A thousand heads that never end and two hundred readers that never read, at a real daemon's door."""

from __future__ import annotations

import json
import select
import socket
import time
from contextlib import suppress

import psutil
import pytest

from tests.faults.report import Figure
from tests.faults.traffic import Traffic, percentile
from tests.integration.daemon import Box, RunningDaemon, until

pytestmark = pytest.mark.faults

HEADS, READERS = 1000, 200
MEASURED_S = 8.0  # less than the limits below, so that all of the crowd is there meanwhile
MOST_MEMORY = 100 << 20
# 1 MB of answer each: several times what the kernel's buffers on both sides hold for a small window
LONG = json.dumps({"prompt": "a", "max_tokens": 1000, "n": 400}).encode()


def test_a_crowd_that_stalls_costs_others_nothing(box: Box, figure: Figure) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    process = psutil.Process(daemon.pid)
    _measure(daemon)  # warm
    usual, memory = _measure(daemon), process.memory_info().rss
    readers = [_reader(box.ports.main) for _ in range(READERS)]
    until(lambda: daemon.engine("generation").in_flight + daemon.engine("generation").held == READERS)
    _until_at_rest(daemon)
    heads_began = time.monotonic()
    heads = [_head(box.ports.main) for _ in range(HEADS)]
    crowded, most = _measure(daemon), process.memory_info().rss
    _until_closed(heads)
    figure(31, "1000 heads closed after", time.monotonic() - heads_began, "s")
    grown = max(most, process.memory_info().rss) - memory
    until_s = time.monotonic()
    while daemon.engine("generation").in_flight:
        assert time.monotonic() - until_s < 120
        time.sleep(0.5)
    figure(30, "200 readers cut after", time.monotonic() - heads_began, "s")
    for connection in [*heads, *readers]:
        connection.close()
    assert grown < MOST_MEMORY
    for row in (30, 31):
        figure(row, "others' p99 without the crowd", usual, "ms")
        figure(row, "others' p99 with it", crowded, "ms")
        figure(row, "daemon grew by", grown / 2**20, "MiB")


def _until_at_rest(daemon: RunningDaemon) -> None:
    """Until what the engine made for the readers is on its way as far as it gets."""
    engine = psutil.Process(daemon.leader("generation"))
    before = -1.0
    while (now := sum(engine.cpu_times()[:2])) - before > 0.01:
        before = now
        time.sleep(0.5)


def _measure(daemon: RunningDaemon) -> float:
    """The p99 of embeddings, in milliseconds."""
    with Traffic(daemon.box.ports.main, embeddings=4) as traffic:
        time.sleep(MEASURED_S)
    assert traffic.failures() == {}
    return percentile(traffic.seconds("embeddings"), 0.99) * 1000


def _reader(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.connect(("127.0.0.1", port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(LONG)
    connection.sendall(head + LONG)
    return connection


def _head(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
    return connection


def _until_closed(connections: list[socket.socket]) -> None:
    """A byte goes to each now and then, as a slow loris sends them."""
    poller = select.poll()
    for connection in connections:
        poller.register(connection, select.POLLIN | select.POLLHUP)
    left = {connection.fileno(): connection for connection in connections}

    def closed() -> bool:
        for number, _ in poller.poll(0):
            poller.unregister(number)
            left.pop(number)
        for connection in left.values():
            with suppress(OSError):
                connection.send(b"a")
        return not left

    until(closed)
