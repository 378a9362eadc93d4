from __future__ import annotations

import pytest

from memoria.proxy.http.messages import HeadCache

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nContent-Length: 12\r\naccept: */*\r\n\r\n"


def known(data: bytes = HEAD) -> HeadCache[str] | None:
    return HeadCache.of(data, "meaning")


@pytest.mark.parametrize(
    ("number", "length"), [(b"12", 12), (b"0", 0), (b"007", 7), (b"123456789", 123456789)]
)
def test_a_head_is_known_again_whatever_its_length_is(number: bytes, length: int) -> None:
    repeat = known()
    assert repeat is not None
    head = HEAD.replace(b"12", number)
    assert repeat.match(head + b"body") == (length, len(head))
    assert repeat.meaning == "meaning"


@pytest.mark.parametrize(
    "other",
    [
        b"",
        HEAD[:20],
        HEAD[:-1],
        HEAD.replace(b"host: a", b"host: b"),
        HEAD.replace(b"*/*", b"*/json"),
        HEAD.replace(b"POST", b"PUT"),
        HEAD.replace(b"12", b""),
        HEAD.replace(b"12", b"+12"),
        HEAD.replace(b"12", b"1 2"),
        HEAD.replace(b"12", b"1_2"),
        HEAD.replace(b"12", b"12, 12"),
        HEAD.replace(b"12", b"0x12"),
        HEAD.replace(b"12", b"1234567890"),
        HEAD.replace(b"12", b"12\r\nContent-Length: 13"),
        HEAD.replace(b"12", "\N{ARABIC-INDIC DIGIT ONE}".encode()),
        HEAD.replace(b"12\r\n", b"12\r\ntransfer-encoding: chunked\r\n"),
        b"\r\n" + HEAD,
    ],
)
def test_any_other_head_is_not(other: bytes) -> None:
    repeat = known()
    assert repeat is not None
    assert repeat.match(other) is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD[:-2],
        HEAD.replace(b"\r\naccept", b"\naccept"),
        HEAD.replace(b"\r\naccept", b"\r\nContent-Length: 12\r\naccept"),
        b"\r\n" + HEAD,
        HEAD.replace(b"*/*", b"a" * 5000),
    ],
    ids=["no length", "no end", "bare line feed", "two lengths", "leading empty line", "long"],
)
def test_a_head_that_may_be_read_in_two_ways_is_not_kept(head: bytes) -> None:
    assert known(head) is None


ANSWER = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 12\r\nx-request-id: one\r\nvia: a\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nX-Request-Id: one\r\ntransfer-encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("head", "length"), [(ANSWER, 12), (STREAM, None), (PLAIN, None)])
def test_an_answers_head_is_known_again_with_the_id_of_its_request(head: bytes, length: int | None) -> None:
    known = HeadCache.of(head + b"body", "meaning", b"one", has_length=length is not None)
    assert known is not None
    for request_id in (b"one", b"three", b"3"):
        other = head.replace(b"one", request_id)
        assert known.match(other + b"body", request_id) == (length, len(other))


@pytest.mark.parametrize("head", [ANSWER, STREAM])
@pytest.mark.parametrize("other", [b"two", b"onetwo", b"", b"one\r\nx: y", b"one\r\n\r\n"])
def test_an_answer_with_another_id_is_not(head: bytes, other: bytes) -> None:
    known = HeadCache.of(head, "meaning", b"one", has_length=head is ANSWER)
    assert known is not None
    assert known.match(head.replace(b"one", other), b"one") is None


@pytest.mark.parametrize(
    "head",
    [
        STREAM[:-2],
        STREAM.replace(b"one", b"another"),
        STREAM.replace(b"\r\ntransfer", b"\r\nx-request-id: one\r\ntransfer"),
        STREAM.replace(b"\r\ntransfer", b"\ntransfer"),
        b"HTTP/1.1 200 OK\r\nx-request-id: one\r\ncontent-length: 12\r\n\r\n",
    ],
    ids=["no end", "another id", "two ids", "bare line feed", "length behind the id"],
)
def test_an_answers_head_that_may_be_read_in_two_ways_is_not_kept(head: bytes) -> None:
    assert HeadCache.of(head, "meaning", b"one", has_length=b"length" in head) is None


@pytest.mark.parametrize("length", [b"1000000000", b"\t12", b""])
def test_a_length_that_is_not_read_is_not_taken_for_none(length: bytes) -> None:
    """The parser found one: the body is no chunks."""
    assert HeadCache.of(ANSWER.replace(b"12", length), "meaning", b"one") is None
