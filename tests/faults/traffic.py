"""Clients that ask a daemon with stub engines, and judge every answer: whole, refused, cut or wrong.

    with Traffic(port, embeddings=4, streams=4) as traffic:
        ... break something ...
    assert traffic.count(Verdict.WRONG) == 0

They run in a thread of their own, so that a test can kill processes meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from tests.stub_engine import answers

READ_LIMIT = 1 << 20
PAUSE_S = 0.02  # after an answer that was none: who is refused does not hammer


class Verdict(StrEnum):
    WHOLE = "whole"
    REFUSED = "refused"  # an error status in OpenAI's shape
    CUT = "cut"  # begun, and ended by an error event or without the end of its framing
    WRONG = "wrong"  # looks whole and is not: a silent truncation, or another's text
    LEFT = "left"  # by the client's own wish


@dataclass(frozen=True, slots=True)
class Result:
    """One request. `at` and `seconds` by the monotonic clock; `cause`: the error's code, if there is one."""

    kind: str
    verdict: Verdict
    cause: str
    at: float
    seconds: float


class Connection:
    """A kept connection to memoria, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, path: str, body: object) -> asyncio.StreamReader:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
        if self.writer is None or self.reader is None:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=READ_LIMIT
            )
        self.writer.write(head.encode() + content)
        await self.writer.drain()
        return self.reader

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


Judged = tuple[Verdict, str]
_numbers = itertools.count()


def _text() -> str:
    return f"text {next(_numbers)}"


async def embed(connection: Connection) -> Judged:
    text = _text()
    reader = await connection.send("/v1/embeddings", {"input": text})
    head = await read_head(reader)
    body, ended = await read_body(reader, head)
    if head.status != 200:
        return _refused(connection, head, body, ended=ended)
    if not ended:
        return Verdict.CUT, "no end"
    vector = json.loads(body)["data"][0]["embedding"]
    return (Verdict.WHOLE, "") if vector == answers.embedding(text) else (Verdict.WRONG, "another's vector")


async def stream(connection: Connection, tokens: int = 10) -> Judged:
    text = _text()
    reader = await connection.send("/v1/completions", {"prompt": text, "max_tokens": tokens, "stream": True})
    head = await read_head(reader)
    body, ended = await read_body(reader, head)
    if head.status != 200:
        return _refused(connection, head, body, ended=ended)
    return _judge_stream(text, tokens, body, ended=ended)


def _judge_stream(text: str, tokens: int, body: bytes, *, ended: bool) -> Judged:
    said, error, done = [], "", False
    for event in body.decode().split("\n\n"):
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            done = True
            continue
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError:
            continue  # nothing, or half an event
        if "error" in value:
            error = str(value["error"]["code"])
        else:
            said.append(value["choices"][0]["text"])
    if said != [answers.word(text, number) for number in range(len(said))]:
        return Verdict.WRONG, "another's text"
    if error:
        return Verdict.CUT, error
    if len(said) == tokens and done and ended:
        return Verdict.WHOLE, ""
    return (Verdict.WRONG, "truncated") if done or ended else (Verdict.CUT, "no error event")


async def leave(connection: Connection) -> Judged:
    """Before the first byte, or after it."""
    reader = await connection.send("/v1/completions", {"prompt": "x", "max_tokens": 1000, "stream": True})
    if random.random() < 0.5:
        await read_head(reader)
    connection.drop()
    return Verdict.LEFT, ""


async def read_slowly(connection: Connection) -> Judged:
    text, tokens = _text(), 40
    reader = await connection.send("/v1/completions", {"prompt": text, "max_tokens": tokens, "stream": True})
    head = await read_head(reader)
    if head.status != 200:
        return _refused(connection, head, *(await read_body(reader, head)))
    assert connection.writer is not None
    for _ in range(5):
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
    body, ended = await read_body(reader, head)
    return _judge_stream(text, tokens, body, ended=ended)


def _refused(connection: Connection, head: Head, body: bytes, ended: bool) -> Judged:
    if not ended:
        return Verdict.CUT, f"half a {head.status}"
    if head.headers.get("connection") == "close":
        connection.drop()
    try:
        return Verdict.REFUSED, str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError):
        return Verdict.WRONG, f"{head.status} without an error"


KINDS: dict[str, Callable[[Connection], Awaitable[Judged]]] = {
    "embeddings": embed,
    "streams": stream,
    "leavers": leave,
    "slow_readers": read_slowly,
}


class Traffic:
    """So many clients of each kind ask without a pause, from `with` on to its end."""

    def __init__(self, port: int, **clients: int) -> None:
        self._port, self._clients = port, clients
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

    def end(self) -> None:
        """What is asked already is answered first."""
        self._ending.set()
        self._thread.join()

    def count(self, *verdicts: Verdict, kind: str | None = None) -> int:
        return sum(r.verdict in verdicts and kind in (None, r.kind) for r in tuple(self.results))

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
                verdict, cause = await KINDS[kind](connection)
            except (OSError, asyncio.IncompleteReadError) as error:
                # no answer at all; memoria itself went away, or it closed a connection that it had kept
                verdict, cause = Verdict.CUT, type(error).__name__
            self.results.append(Result(kind, verdict, cause, began, time.monotonic() - began))
            if verdict in (Verdict.CUT, Verdict.WRONG):
                connection.drop()
            if verdict is not Verdict.WHOLE:
                await asyncio.sleep(PAUSE_S)
        with suppress(OSError):
            connection.drop()


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
