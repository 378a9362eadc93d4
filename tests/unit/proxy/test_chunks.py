"""A chunked body on its way from an engine to a client, however it is cut into reads."""

from __future__ import annotations

from asyncio import Transport
from typing import cast

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.proxy.http.messages import BY_LENGTH, LONGEST, Reply, chunk
from memoria.proxy.upstream import Pool, Sink, Upstream
from memoria.vllm.facts import UnixAddress

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":10,"completion_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"


class _Client:
    """Takes what leaves for the client, and reads it as one would."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.body = b""
        self.complete = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def read(self) -> None:
        httptools.HttpResponseParser(self).feed_data(b"".join(self.sent))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


class _Request:
    """What an exchange does about a response."""

    switches = False

    def __init__(self, *, http_1_0: bool = False, pool: Pool | None = None, request_id: bytes = b"") -> None:
        self.client = _Client()
        self.reply = Reply(cast(Transport, self.client), b"id", http_1_0=http_1_0)
        self.upstream = Upstream(UnixAddress("engine.sock"), pool or Pool())
        self.upstream.begin(self, b"", request_id)
        self.over = self.lost = False

    def answered(self, reads: list[bytes]) -> _Request:
        for read in reads:
            self.upstream.data_received(read)
        return self

    def on_response_head(self, upstream: Upstream) -> Sink:
        assert upstream.head is not None
        self.reply.begin(upstream.head, upstream.length, keep_alive=True)
        return self.reply

    def on_response_end(self, upstream: Upstream) -> None:
        self.over = True
        self.reply.end()

    def on_upstream_lost(self, upstream: Upstream) -> None:
        self.lost = True

    def on_upstream_writable(self) -> None:
        raise AssertionError("nothing was asked")


def _cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % len(data) for place in at} - {0})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


pieces = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.binary(min_size=1, max_size=12).map(chunk),  # what looks like a chunk, and is a part of one
        st.integers(1, 2 * LONGEST).map(lambda size: b"\r\n" * (size // 2) + b"a"),
    ),
    min_size=1,
    max_size=6,
)


@given(pieces, st.lists(st.integers(0, 10_000), max_size=8))
def test_a_client_gets_the_engines_body_however_it_was_cut(body: list[bytes], places: list[int]) -> None:
    data = b"".join(map(chunk, body)) + b"0\r\n\r\n"
    request = _Request().answered([HEAD, *_cut(data, places)])
    request.client.read()
    assert request.client.body == b"".join(body)
    assert request.client.complete
    assert request.over
    assert not request.upstream.garbled
    assert request.upstream.received == len(b"".join(body))


@given(pieces, st.lists(st.integers(0, 10_000), max_size=8))
def test_nothing_differs_under_a_head_that_came_before(body: list[bytes], places: list[int]) -> None:
    """With an id of its own, and cut anywhere: in the head, too."""
    pool = Pool()
    head = HEAD.replace(b"transfer", b"x-request-id: %b\r\ntransfer")
    data = b"".join(map(chunk, body)) + b"0\r\n\r\n"
    _Request(pool=pool, request_id=b"1").answered([head % b"1", data])
    assert pool.known_heads
    for request_id in (b"2", b"three"):
        whole = head % request_id + data
        for reads in (_cut(whole, places), [head % request_id, *_cut(data, places)]):
            request = _Request(pool=pool, request_id=request_id).answered(reads)
            request.client.read()
            assert request.client.body == b"".join(body)
            assert (request.client.complete, request.over, request.upstream.garbled) == (True, True, False)
            assert request.upstream.received == len(b"".join(body))
            assert request.upstream.reads == len(reads)
            assert b"".join(request.client.sent).count(b"HTTP/1.1") == 1 + b"".join(body).count(b"HTTP/1.1")


def test_an_answer_of_a_gigabyte_is_none_in_chunks() -> None:
    pool = Pool()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n"
    for _ in range(2):
        request = _Request(pool=pool).answered([head, b"a" * 10, b"b" * 10])
        assert request.upstream.received == 20
        assert not request.lost


def test_a_known_head_leaves_before_its_body() -> None:
    pool = Pool()
    _Request(pool=pool).answered([HEAD, b"0\r\n\r\n"])
    for reads in ([HEAD], [HEAD + b"5\r\n"]):
        sent = _Request(pool=pool).answered(reads).client.sent
        assert len(sent) == 1
        assert sent[0].startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("body", [HEAD, HEAD + chunk(b"a"), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])
def test_a_second_head_is_no_body(body: bytes) -> None:
    pool = Pool()
    before = _Request(pool=pool).answered([HEAD, b"0\r\n\r\n"])
    for reads in ([HEAD + body], [HEAD, body]):
        request = _Request(pool=pool).answered(reads)
        assert (request.lost, request.over) == (True, False)
    assert before.over


@given(pieces)
def test_reads_that_are_whole_chunks_leave_as_they_came(body: list[bytes]) -> None:
    chunks = [chunk(piece) for piece in body]
    request = _Request().answered([HEAD, *chunks, b"0\r\n\r\n"])
    assert request.client.sent[1:] == [*chunks, b"0\r\n\r\n"]
    assert request.client.sent[0].endswith(b"\r\n\r\n")


def test_a_length_is_that_of_one_chunk() -> None:
    for size in range(1, 2 * LONGEST):
        data = b"a" * size
        whole = chunk(data)
        if len(whole) <= LONGEST:
            line, found = BY_LENGTH[len(whole)]
            assert found == size
            assert whole.startswith(line)
        sent = _Request().answered([HEAD, whole]).client.sent
        assert sent[1:] == [whole]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 21, 262])
def test_some_lengths_are_of_no_chunk(length: int) -> None:
    assert BY_LENGTH[length][1] == 0


@pytest.mark.parametrize(
    "reads",
    [
        [b"2", b"5\r\nhello\r\n", b"a" * 30 + b"\r\n"],
        [b"25\r", b"\n5\r\nhello\r\n" + b"a" * 27 + b"\r\n"],
        [b"a\r\n", b"5\r\nhello\r\n", b"\r\n"],
        [b"c\r\n12345678\r\n", b"5\r\nhello\r\n"],
    ],
    ids=["half a size line", "a size line cut short", "data like a chunk", "and a wrong end"],
)
def test_what_only_looks_like_a_chunk_is_none(reads: list[bytes]) -> None:
    assert _outcome([HEAD, chunk(b"a"), *reads]) == _outcome([HEAD + chunk(b"a") + b"".join(reads)])


@pytest.mark.parametrize(
    "wrong", [b"5\r\nhelloXY", b"5\r\nhell\r\n", b"g\r\nhello\r\n", b"5;a=b\r\nhello\r\n"]
)
def test_what_is_no_plain_chunk_is_left_to_the_parser(wrong: bytes) -> None:
    assert _outcome([HEAD, chunk(b"a"), wrong]) == _outcome([HEAD + chunk(b"a") + wrong])


def _outcome(reads: list[bytes]) -> tuple[bytes, int, bool]:
    """What the client reads, how much of it there was, and whether the engine was given up for it."""
    request = _Request().answered(reads)
    request.client.read()
    return request.client.body, request.upstream.received, request.lost


def test_a_client_that_knows_no_chunks_gets_their_data() -> None:
    request = _Request(http_1_0=True).answered([HEAD, chunk(b"one"), chunk(b"two"), b"0\r\n\r\n"])
    assert b"".join(request.client.sent).partition(b"\r\n\r\n")[2] == b"onetwo"


@pytest.mark.parametrize(
    "reads",
    [
        [chunk(USAGE), chunk(DONE), b"0\r\n\r\n"],
        [chunk(USAGE), chunk(DONE) + b"0\r\n\r\n"],
        [chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"],
        [chunk(USAGE)[:50], chunk(USAGE)[50:], chunk(DONE), b"0\r\n\r\n"],
        [chunk(USAGE), chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n'), chunk(DONE)],
    ],
)
def test_the_end_that_tells_of_tokens_is_kept(reads: list[bytes]) -> None:
    text = chunk(b'data: {"choices":[{"text":"a"}],"usage":null}\n\n' + b" " * 100)
    request = _Request().answered([HEAD, text, text, text, *reads])
    assert b'"usage":{"prompt_tokens":3,"total_tokens":10,"completion_tokens":7}' in request.reply.ends
