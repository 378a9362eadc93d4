"""Clients of a daemon that check every answer (see verdict.py).

    with Traffic(port, embeddings=4, streams=4) as traffic:
        ... break something ...
    assert traffic.failures() == {}

They run in their own thread, so that a test can kill processes meanwhile. A stub engine's answers are known
to the letter; `Traffic(port, OfVllm(), ...)` is for a real one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import mul
from types import TracebackType
from typing import Protocol, Self

from tests.faults.verdict import FAILED, Judged, Result, Verdict, judge_refusal, judge_stream, read_stream
from tests.stub_engine import answers

READ_LIMIT = 1 << 20
PAUSE_S = 0.02  # after an answer that was none: who is refused does not hammer


class Expected(Protocol):
    """What whole answers hold."""

    def text(self) -> str:
        """The next request's."""
        ...

    def is_vector_of(self, text: str, vector: list[float]) -> bool: ...

    def is_begin_of(self, text: str, said: list[str]) -> bool: ...


_numbers = itertools.count()


class OfStub:
    """The answers depend on the input alone (tests/stub_engine/answers.py)."""

    def text(self) -> str:
        return f"text {next(_numbers)}"

    def is_vector_of(self, text: str, vector: list[float]) -> bool:
        return vector == answers.embedding(text)

    def is_begin_of(self, text: str, said: list[str]) -> bool:
        words = (answers.word(text, number) for number in itertools.count())
        return all(one == word for one, word in zip((s for s in said if s), words, strict=False))


class OfVllm:
    """A few texts again and again: each has the vector that it had at first, but for what a batch of another
    size does to its last digits. A model's words are its own, so only their number is judged. `words`: in the
    longest text."""

    TEXTS = 8
    CLOSE = 0.99  # cosine of two vectors of length one

    def __init__(self, words: int = TEXTS) -> None:
        self._texts = [
            " ".join(["word"] * (words * number // self.TEXTS)) for number in range(1, self.TEXTS + 1)
        ]
        self._vectors: dict[str, list[float]] = {}

    def text(self) -> str:
        return random.choice(self._texts)

    def is_vector_of(self, text: str, vector: list[float]) -> bool:
        first = self._vectors.setdefault(text, vector)
        return math.fsum(map(mul, first, vector)) > self.CLOSE

    def is_begin_of(self, text: str, said: list[str]) -> bool:
        return True


class Connection:
    """A kept connection to memoria, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, path: str, body: object) -> asyncio.StreamReader:
        content = json.dumps(body).encode()
        lines = (
            f"POST {path} HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {len(content)}",
            "\r\n",
        )
        if self.writer is None or self.reader is None:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=READ_LIMIT
            )
        self.writer.write("\r\n".join(lines).encode() + content)
        await self.writer.drain()
        return self.reader

    async def pause(self, times: int) -> None:
        """Reads nothing for a while, so often."""
        assert self.writer is not None
        for _ in range(times):
            self.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)
            self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def drop(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: dict[str, str]


async def read_head(reader: asyncio.StreamReader) -> Head:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:-2])
    return Head(int(lines[0].split(" ")[1]), headers)


async def read_body(reader: asyncio.StreamReader, head: Head) -> tuple[bytes, bool]:
    """What came, and whether it ended as its framing says."""
    body = b""
    try:
        if head.headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(head.headers["content-length"]))
    except asyncio.IncompleteReadError as cut:
        return body + cut.partial, False
    except ConnectionError:
        return body, False
    return body, True


async def embed(connection: Connection, expected: Expected) -> Judged:
    text = expected.text()
    reader = await connection.send("/v1/embeddings", {"input": text})
    head = await read_head(reader)
    body, ended = await read_body(reader, head)
    if head.status != 200:
        return _refused(connection, head, body, ended=ended)
    if not ended:
        return Verdict.CUT, "half a 200"
    vector = json.loads(body)["data"][0]["embedding"]
    return (Verdict.WHOLE, "") if expected.is_vector_of(text, vector) else (Verdict.WRONG, "another's vector")


async def stream(
    connection: Connection, expected: Expected, tokens: int = 10, *, slowly: bool = False
) -> Judged:
    text = expected.text()
    reader = await connection.send(
        "/v1/completions",
        {
            "prompt": text,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    head = await read_head(reader)
    if slowly and head.status == 200:
        await connection.pause(times=5)
    body, ended = await read_body(reader, head)
    if head.status != 200:
        return _refused(connection, head, body, ended=ended)
    read = read_stream(body, ended=ended)
    if not expected.is_begin_of(text, read.texts):
        return Verdict.WRONG, "another's text"
    return judge_stream(read, tokens)


async def read_slowly(connection: Connection, expected: Expected) -> Judged:
    return await stream(connection, expected, tokens=40, slowly=True)


async def leave(connection: Connection, expected: Expected) -> Judged:
    """Before the first byte, or after it."""
    body = {"prompt": expected.text(), "max_tokens": 1000, "ignore_eos": True, "stream": True}
    reader = await connection.send("/v1/completions", body)
    if random.random() < 0.5:
        await read_head(reader)
    connection.drop()
    return Verdict.LEFT, ""


def _refused(connection: Connection, head: Head, body: bytes, *, ended: bool) -> Judged:
    if head.headers.get("connection") == "close":
        connection.drop()
    return judge_refusal(head.status, body, ended=ended)


KINDS: dict[str, Callable[[Connection, Expected], Awaitable[Judged]]] = {
    "embeddings": embed,
    "streams": stream,
    "leavers": leave,
    "slow_readers": read_slowly,
}


class Traffic:
    """So many clients of each kind ask without a pause, from `with` on to its end."""

    def __init__(self, port: int, expected: Expected | None = None, /, **clients: int) -> None:
        self._port, self._clients = port, clients
        self._expected = expected or OfStub()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self.results: list[Result] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def stop_asking(self) -> None:
        self._ending.set()

    def end(self) -> None:
        """Requests in flight are answered first."""
        self.stop_asking()
        self._thread.join()

    def count(self, *verdicts: Verdict, kind: str | None = None) -> int:
        return sum(r.verdict in verdicts and kind in (None, r.kind) for r in tuple(self.results))

    def failures(self, kind: str | None = None) -> Counter[str]:
        """All that is not whole, but for those who left."""
        return self.causes(*FAILED, Verdict.WRONG, kind=kind)

    def causes(self, *verdicts: Verdict, kind: str | None = None) -> Counter[str]:
        return Counter(
            f"{r.kind} {r.verdict}: {r.cause}"
            for r in tuple(self.results)
            if r.verdict in verdicts and kind in (None, r.kind)
        )

    def seconds(self, kind: str) -> list[float]:
        """Of the whole answers, sorted."""
        return sorted(r.seconds for r in tuple(self.results) if r.kind == kind and r.verdict is Verdict.WHOLE)

    def _run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        await asyncio.gather(
            *(self._client(kind) for kind, number in self._clients.items() for _ in range(number))
        )

    async def _client(self, kind: str) -> None:
        connection = Connection(self._port)
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                verdict, cause = await KINDS[kind](connection, self._expected)
            except (OSError, asyncio.IncompleteReadError) as error:
                # no answer at all; memoria itself went away, or it closed a connection that it had kept
                verdict, cause = Verdict.CUT, type(error).__name__
            self.results.append(Result(kind, verdict, cause, began, time.monotonic() - began))
            if verdict not in (Verdict.WHOLE, Verdict.REFUSED):
                connection.drop()
            if verdict is not Verdict.WHOLE:
                await asyncio.sleep(PAUSE_S)
        with suppress(OSError):
            connection.drop()


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def told(results: Sequence[Result]) -> list[str]:
    """For a report: how many of each verdict, and the failures by cause."""
    counts = Counter(result.verdict for result in results)
    causes = Counter(
        f"{r.kind}: {r.verdict}, {r.cause}" for r in results if r.verdict in (*FAILED, Verdict.WRONG)
    )
    return [
        f"requests    {len(results)}: {', '.join(f'{counts[verdict]} {verdict}' for verdict in Verdict)}",
        *(f"  {count:6} {cause}" for cause, count in sorted(causes.items())),
    ]
