"""Whatever bytes a client sends, however they are cut: an engine reads the requests that memoria answered,
and no others; every client gets an answer in HTTP or is disconnected.

The engine's side is read by h11, which is strict and shares no code with memoria's parser.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memoria.config.model import Limits
from memoria.proxy.downstream import connection
from memoria.proxy.routing.routes import ROUTES
from tests.faults import corpus
from tests.integration.proxy_rig import JSON_OK, Asked, Client, Rig, ScriptedEngine

EXAMPLES = int(os.environ.get("MEMORIA_FUZZ_EXAMPLES", "300"))
# Ends every example: a server that reads it as a request closes the connection after it.
LAST = b"GET /v1/models HTTP/1.1\r\nhost: last\r\nconnection: close\r\n\r\n"
SERVED = {route.path.encode() for route in ROUTES}

LINES = st.sampled_from(
    [
        b"POST /v1/embeddings HTTP/1.1",
        b"POST /v1/score HTTP/1.1",
        b"POST /v1/embeddings?a=b HTTP/1.0",
        b"POST http://evil/v1/embeddings HTTP/1.1",
        b"GET /v1/models HTTP/1.1",
        b"HEAD /health HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"POST //v1/embeddings HTTP/1.1",
    ]
)
FIELDS = st.sampled_from(
    [
        b"host: test",
        b"host: test",
        b"host: a/b",
        b"content-length: 2",
        b"content-length: 2",
        b"content-length: 0",
        b"Content-Length: 7",
        b"content-length: +2",
        b"content-length : 2",
        b"transfer-encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: identity",
        b"transfer_encoding: chunked",
        b"connection: close",
        b"connection: keep-alive, x-a",
        b"connection: upgrade",
        b"upgrade: h2c",
        b"expect: 100-continue",
        b"x-a: b",
        b" folded",
        b"x: a\rb",
        b"content-type: application/json",
        b"x-request-id: mine",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"{}",
        b"0\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
        b"2;x=y\r\n{}\r\n0\r\na: b\r\n\r\n",
        b"2\n{}\n0\n\n",
        LAST,
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n\r\n"])


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    end = draw(ENDS)
    head = end.join([draw(LINES), *draw(st.lists(FIELDS, max_size=5))])
    return head + end * 2 + draw(BODIES)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """One of the corpus with a few bytes changed."""
    data = bytearray(draw(st.sampled_from(sorted(corpus.requests("refused").values()))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


WIRES = st.lists(nearly_requests() | mutations() | st.binary(max_size=40), min_size=1, max_size=4).map(
    b"".join
)


class Engine(ScriptedEngine):
    """Answers everything, and keeps all bytes that come, by connection."""

    def __init__(self) -> None:
        super().__init__(self._read)
        self.streams: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.streams)
        self.streams.append(b"")
        parser = h11.Connection(h11.SERVER)
        try:
            while data := await reader.read(1 << 16):
                self.streams[number] += data
                parser.receive_data(data)
                while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                    if isinstance(event, h11.EndOfMessage):
                        writer.write(JSON_OK)
                        parser.send(h11.Response(status_code=200, headers=[("content-length", "11")]))
                        parser.send(h11.Data(data=b'{"ok":true}'))
                        parser.send(h11.EndOfMessage())
                        parser.start_next_cycle()
        except h11.RemoteProtocolError as error:
            self.failures.append(error)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _read(self, asked: Asked) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        """What came up to now; connections that are kept go on."""
        self.streams = [b"" for _ in self.streams]

    def requests(self) -> list[h11.Request]:
        """As h11 reads them; raises where it does not."""
        found = []
        for stream in filter(None, self.streams):  # to h11, no bytes are the end
            parser = h11.Connection(h11.SERVER)
            parser.receive_data(stream)
            while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    found.append(event)
                elif isinstance(event, h11.EndOfMessage):
                    parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    parser.send(h11.EndOfMessage())
                    parser.start_next_cycle()
        return found


class Bench:
    """A proxy in a loop that is run for one example at a time."""

    def __init__(self, folder: Path) -> None:
        self._loop = uvloop.new_event_loop()
        self.engine = Engine()
        self.rig = Rig(folder, client_idle=0.2, limits=Limits(body_bytes=4096), embedding=self.engine)
        self.run(self.rig.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 30))

    def close(self) -> None:
        self.run(self.rig.__aexit__(None, None, None))
        self._loop.close()

    async def exchange(self, pieces: list[bytes]) -> bytes:
        """Sends them one by one; returns what came until memoria hung up."""
        client = await self.rig.client()
        answer = asyncio.create_task(_all(client.reader))
        await _send(client, pieces, 0)
        return await answer

    async def in_turn(self, pieces: list[bytes], answered: int) -> bytes:
        """As `exchange`, but the first `answered` pieces are requests, each sent when the one before is
        answered; returns what came after these answers."""
        client = await self.rig.client()
        for piece in pieces[:answered]:
            await client.send(piece)
            assert (await client.response()).status == (404 if b"/nowhere" in piece else 200)
        answer = asyncio.create_task(_all(client.reader))
        await _send(client, pieces[answered:], 0.001)
        return await answer


async def _send(client: Client, pieces: list[bytes], apart: float) -> None:
    """Until memoria hangs up; so many seconds `apart`, so that they are read as pieces."""
    with suppress(ConnectionError):
        for piece in pieces:
            if client.writer.is_closing():
                return
            await client.send(piece)
            await asyncio.sleep(apart)


async def _all(reader: asyncio.StreamReader) -> bytes:
    data = b""
    try:
        while piece := await reader.read(1 << 16):
            data += piece
    except ConnectionError:
        pass
    return data


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEAD_S", 0.2)
        bench = Bench(tmp_path_factory.mktemp("fuzz"))
        yield bench
        bench.close()


@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(wire=WIRES, cuts=st.lists(st.integers(0, 400), max_size=4))
@example(wire=b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n{}" * 2, cuts=[70])
def test_whatever_a_client_sends_an_engine_reads_what_memoria_meant(
    bench: Bench, caplog: pytest.LogCaptureFixture, wire: bytes, cuts: list[int]
) -> None:
    caplog.clear()
    bench.engine.forget()
    bench.rig.exchanges.clear()
    answer = bench.run(bench.exchange(_cut(wire + LAST, cuts)))
    assert bench.engine.failures == []
    _check_answers(answer)
    asked = bench.engine.requests()
    assert len(asked) <= len(bench.rig.exchanges)
    for request in asked:
        names = [name for name, _ in request.headers]
        assert request.target.partition(b"?")[0] in SERVED
        assert (b"host", b"localhost") in list(request.headers)
        assert names.count(b"host") == 1
        assert not {b"connection", b"upgrade", b"expect"} & set(names)
        assert not {b"content-length", b"transfer-encoding"} <= set(names)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said == [], wire


PLAIN = b'POST /v1/embeddings HTTP/1.1\r\nhost: test\r\nx-a: b\r\ncontent-length: 11\r\n\r\n{"input":1}'
OWN = PLAIN.replace(b"/v1/embeddings", b"/nowhere")  # for memoria itself, by way of ASGI


@st.composite
def alike(draw: st.DrawFn) -> bytes:
    """Much like `PLAIN` or `OWN`, so that it could be taken for the same again."""
    known = draw(st.sampled_from([PLAIN, OWN]))
    at = draw(st.integers(0, len(known)))
    cut = draw(st.integers(0, 3))
    return (
        known[:at]
        + draw(st.binary(max_size=3) | FIELDS | st.sampled_from([b"", b"1", b"0", b" "]))
        + known[at + cut :]
    )


@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    first=st.lists(st.sampled_from([PLAIN, OWN]), min_size=1, max_size=4),
    second=alike() | nearly_requests(),
    cuts=st.lists(st.integers(0, 200), max_size=1),
)
@example(first=[PLAIN, PLAIN], second=PLAIN, cuts=[])
@example(first=[PLAIN, PLAIN], second=PLAIN.replace(b"content-length: 11", b"content-length: 1\x01"), cuts=[])
@example(first=[PLAIN, PLAIN], second=PLAIN.replace(b"content-length: 11", b"content-length: 011"), cuts=[])
@example(first=[OWN, PLAIN], second=OWN, cuts=[])
@example(first=[PLAIN, OWN, PLAIN], second=OWN, cuts=[])
def test_a_request_is_read_alike_after_one_that_it_resembles(
    bench: Bench, first: list[bytes], second: bytes, cuts: list[int]
) -> None:
    """memoria knows a head again by its bytes: what it knows must not change what it reads."""
    seen = []
    for before in ([], first):
        bench.engine.forget()
        answer = bench.run(bench.in_turn([*before, *_cut(second, cuts), LAST], len(before)))
        asked = [(r.method, r.target, _without_id(r.headers)) for r in bench.engine.requests()]
        assert len(asked) >= before.count(PLAIN)
        seen.append((_ID.sub(b"", answer), asked[before.count(PLAIN) :]))
    assert bench.engine.failures == []
    assert seen[0] == seen[1]


_ID = re.compile(rb"x-request-id: [^\r]*\r\n")


def _without_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"x-request-id"]


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    return [data[a:b] for a, b in pairwise(places) if a < b]


def _check_answers(data: bytes) -> None:
    """A row of whole responses, however many; 100 and errors among them."""
    while data:
        head, found, rest = data.partition(b"\r\n\r\n")
        assert found, data
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 ")
        status = int(lines[0].split(b" ")[1])
        assert status in {100, 200, 400, 404, 405, 408, 413, 421, 431}, data
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        length = int(headers.get(b"content-length", b"0"))
        if rest.startswith(b"HTTP/1.1 ") or not rest:
            length = 0  # to a HEAD
        assert len(rest) >= length, data
        data = rest[length:]
