"""Hostile clients of a running daemon, and what others feel of them:

    python -m tests.faults.hostile [ROW ...] [--seconds N] [--rounds N]

Each row is a kind of client that once held up all the others. By turns others are measured alone, while
it attacks another daemon on the same cores (beside), and while it attacks theirs (with): what differs
between these two is memoria's part, the rest is the machine's. Printed are the event loop's longest turn
(what ran between two ticks of a timer of 1 ms: processor time, and by the clock, which other work on the
machine lengthens), what the daemon's memory grew by at most, and the p99 of others' embeddings. The
hostile client has what processor time others leave.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psutil

from tests.faults.inside import longest_turn
from tests.faults.target import of_stub, stub_box
from tests.faults.traffic import Traffic, percentile
from tests.integration.daemon import ROOT, Box

MIB = 1 << 20
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
OTHERS = 2  # clients that are measured
KEYS: dict[str, Any] = {
    "limits": {"body_mb": 64},
    "engines": {
        "generation": {"filters": {"strip": ["user"]}},
        "second": {"model": "./models/second", "gpu_memory_utilization": 0.05},
    },
}
Bytes = Iterator[bytes]  # of one connection, until the daemon closes it


def post(path: str, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers, "", "")
    return "\r\n".join(lines).encode()


def sized(path: str, body: bytes, *headers: str) -> bytes:
    return post(path, f"content-length: {len(body)}", *headers) + body


CHUNKED = "transfer-encoding: chunked"


def large_second_read() -> Bytes:
    body = json.dumps({"input": "x" * 70_000}).encode()
    head, rest = (whole := sized("/v1/embeddings", body))[:40], whole[40:]
    while True:
        yield head
        time.sleep(0.2)
        yield rest


def endless_trailer() -> Bytes:
    yield post("/v1/embeddings", CHUNKED) + b"2\r\n{}\r\n0\r\n"
    yield from itertools.repeat(b"x: y\r\n" * 10_000)


def requests_ahead() -> Bytes:
    refused = b"GET /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n\r\n"
    own = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n"
    yield from itertools.repeat((refused * 10 + own) * 200)


def crumbs() -> Bytes:
    """To a route of two engines: the model is in a body that has not ended yet."""
    yield post("/tokenize", CHUNKED)
    yield from itertools.repeat(b"2\r\n[[\r\n" * 10_000)


def crumbs_after_a_refusal() -> Bytes:
    yield post("/v1/nothing", CHUNKED)
    yield from itertools.repeat(b"2\r\n[[\r\n" * 10_000)


@cache
def large_bodies() -> tuple[bytes, bytes, bytes]:
    part = b'--b\r\ncontent-disposition: form-data; name="a"\r\n' + b"x: y\r\n" * 1500 + b"\r\n\r\n"
    form = part * 1000 + b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n'
    numbers = b'{"prompt":[' + b"1," * (16 * MIB) + b'1],"model":"nobody"}'
    text = b'{"model":"writer","user":"u","messages":"' + b"x" * (60 * MIB) + b'"}'
    head = post("/v1/audio/transcriptions", f"content-length: {len(form)}")
    return (
        head.replace(b"application/json", b"multipart/form-data; boundary=b") + form,
        sized("/tokenize", numbers),
        sized("/v1/chat/completions", text),
    )


def long_to_read() -> Bytes:
    yield from itertools.cycle(large_bodies())


def endless_engine_head() -> Bytes:
    body = b'{"model":"writer","prompt":"a","max_tokens":1}'
    while True:
        yield sized("/v1/completions", body, "x-stub-head-mib: 150")
        time.sleep(0.2)


def failures() -> Bytes:
    """A line in the log for each."""
    body = b'{"model":"writer","prompt":"a","max_tokens":1}'
    identity = "x-request-id: " + "i" * 128
    yield from itertools.repeat(sized("/v1/completions", body, "x-stub-head-mib: 1", identity))


def slow_uploads() -> Bytes:
    yield post("/tokenize", f"content-length: {64 * MIB}") + b"{" + b" " * (60 * MIB)
    while True:
        time.sleep(0.1)
        yield b" "


@dataclass(frozen=True, slots=True)
class Row:
    """`unread`: nobody reads the daemon's stderr meanwhile."""

    what: str
    clients: tuple[Callable[[], Bytes], ...]
    connections: int = 20
    unread: bool = False


ROWS = {
    1: Row("a head in two reads, the second over 64 KiB", (large_second_read,), connections=2),
    2: Row("a trailer without end", (endless_trailer,)),
    3: Row("requests sent ahead, without end", (requests_ahead,)),
    4: Row("bodies in 2-byte chunks, also refused ones", (crumbs, crumbs_after_a_refusal)),
    5: Row("bodies that take long to read", (long_to_read,), connections=4),
    6: Row("a response's head of 150 MiB", (endless_engine_head,), connections=2),
    7: Row("failures, and a stderr that nobody reads", (failures,), unread=True),
    8: Row("uploads of 64 MiB that stop before the end", (slow_uploads,), connections=4),
}


@dataclass(slots=True)
class Figures:
    """Of all rounds. Milliseconds and MiB."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    processor: float = 0.0
    clock: float = 0.0
    grown: float = 0.0
    failures: int = 0
    sent: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)

    def line(self, number: int, row: Row) -> str:
        alone, during = statistics.median(self.alone), statistics.median(self.during)
        beside = statistics.median(self.beside or self.alone)
        return (
            f"{number}  {row.what:44} {self.processor:8.1f} {self.clock:8.0f} {self.grown:9.1f}"
            f" {alone:8.1f} {beside:8.1f} {during:8.1f} {during / beside:6.2f}\n"
            f"   sent {self.sent:.0f} MiB, answered {dict(self.answered)}, {self.failures} of others failed"
        )


TITLE = """\
                                               longest turn, ms   grew by          others' p99, ms
                                                     CPU  clock       MiB    alone   beside     with  ratio
"""


def measure(number: int, box: Box, seconds: float, rounds: int, *, beside: Box | None = None) -> Figures:
    """`beside`: of the other daemon."""
    found = Figures()
    with ExitStack() as started:
        target = of_stub(box, {}, **KEYS)
        started.callback(target.stop)
        if beside is not None:
            other = of_stub(beside, {}, **KEYS)
            started.callback(other.stop)
        _others(target.port, seconds, found)  # warm
        process = psutil.Process(target.pid)
        for _ in range(rounds):
            found.alone.append(_others(target.port, seconds, found))
            if beside is not None:
                with _attacked(number, beside, other.port):
                    found.beside.append(_others(target.port, seconds, found))
            memory = process.memory_info().rss
            longest_turn(target.pid, target.folder)  # from now on
            with _attacked(number, box, target.port) as did, _Most(process) as most:
                found.during.append(_others(target.port, seconds, found))
            found.sent += did["sent"] / MIB
            found.answered += Counter(did["answered"])
            turn = longest_turn(target.pid, target.folder)
            found.processor = max(found.processor, turn.processor * 1000)
            found.clock = max(found.clock, turn.clock * 1000)
            found.grown = max(found.grown, (most.bytes - memory) / MIB)
    return found


@contextmanager
def _attacked(number: int, box: Box, port: int) -> Iterator[dict[str, Any]]:
    """Yields what the client did, when the block ends."""
    did: dict[str, Any] = {}
    with ExitStack() as stack:
        if ROWS[number].unread:
            stack.enter_context(box.daemons[-1].err.unread())
        hostile = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--attack", str(number), str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(hostile.kill)
        assert hostile.stdout is not None
        hostile.stdout.readline()  # it has begun
        yield did
        did |= json.loads(hostile.communicate()[0])


class _Most:
    """The most memory that a process had at once."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._over = process, threading.Event()
        self.bytes = 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Most:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, self._process.memory_info().rss)


def _others(port: int, seconds: float, found: Figures) -> float:
    """Their p99, in milliseconds."""
    with Traffic(port, embeddings=OTHERS) as traffic:
        time.sleep(seconds)
    found.failures += sum(traffic.failures().values())
    return percentile(traffic.seconds("embeddings") or [seconds], 0.99) * 1000


def attack(number: int, port: int) -> None:
    """Until it is killed."""
    os.nice(5)
    row = ROWS[number]
    for client in row.clients:
        next(client())  # what is built once
    clients = itertools.islice(itertools.cycle(row.clients), row.connections)
    threads = [threading.Thread(target=_repeat, args=(client, port), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    sys.stdin.read()  # the end of who started it ends this too
    print(json.dumps({"sent": sum(_sent.values()), "answered": _answered}))


_sent: Counter[int] = Counter()  # by thread
_answered: Counter[str] = Counter()


def _repeat(client: Callable[[], Bytes], port: int) -> None:
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setblocking(False)
            for piece in client():
                _exchange(connection, piece)
        time.sleep(0.01)


def _exchange(connection: socket.socket, piece: bytes) -> None:
    """Sends all of it, and takes whatever is answered. Raises `OSError` when the daemon closes."""
    rest = memoryview(piece)
    while rest:
        readable, writable, _ = select.select([connection], [connection], [])
        if readable:
            got = connection.recv(1 << 18)
            if not got:
                raise ConnectionError
            _answered.update(status.decode() for status in _STATUS.findall(got))
        if writable:
            sent = connection.send(rest)
            _sent[threading.get_ident()] += sent
            rest = rest[sent:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile")
    parser.add_argument("rows", nargs="*", type=int, metavar="ROW", help=f"1 to {len(ROWS)}; default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attack", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.attack:
        attack(*options.attack)
        return 0
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(map(str, sorted(unknown)))} (there are 1 to {len(ROWS)})")
    print(TITLE, end="", flush=True)
    for number in options.rows or ROWS:
        with stub_box() as box, stub_box() as beside:
            found = measure(number, box, options.seconds, options.rounds, beside=beside)
            print(found.line(number, ROWS[number]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
