from __future__ import annotations

import pytest

from memoria.proxy.errors import Rejection
from memoria.proxy.http.messages import NOT_FOR_CLIENTS, Header, new_request_id, nominated, without
from memoria.proxy.http.request import RequestHead, read_head
from memoria.proxy.routing.routes import methods_of


def read(*headers: Header, version: str = "1.1", query: bytes = b"") -> RequestHead:
    """As a connection reads a head; raises what it refuses."""
    methods = methods_of(b"/v1/embeddings")
    assert methods is not None
    target = b"/v1/embeddings" + (b"?" + query if query else b"")
    plain = [header for header in headers if header[0] != b"content-length"]
    head = read_head(methods, b"POST", target, version, plain, keep_alive=True)
    if head.refused is not None:
        raise Rejection(head.refused)
    if lengths := [value for name, value in headers if name == b"content-length"]:
        head.body_length(lengths, 2**20)
    return head


def sent(head: RequestHead) -> bytes:
    before, after = head.to_engine
    return before + b"id" + after


HOST = (b"host", b"test:8200")


@pytest.mark.parametrize("host", [b"a", b"a.b:80", b"127.0.0.1:8200", b"[::1]:8200", b"localhost"])
def test_a_host_is_a_name_or_an_address_with_a_port(host: bytes) -> None:
    read((b"host", host))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [HOST, HOST],
        [(b"host", b"a/b?")],
        [(b"host", b"a b")],
        [(b"host", b"a:b")],
        [(b"host", b"::1")],
        [(b"host", b"")],
        [HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [HOST, (b"content-length", b"1"), (b"content-length", b"1")],
        [HOST, (b"content-length", b"-1")],
        [HOST, (b"content-length", b"1 ")],
        [HOST, (b"content-length", "١".encode())],
        [HOST, (b"transfer-encoding", b"chunked, chunked")],
        [HOST, (b"transfer-encoding", b"identity")],
    ],
)
def test_a_head_with_two_meanings_is_refused_and_the_connection_closed(headers: list[Header]) -> None:
    with pytest.raises(Rejection) as caught:
        read(*headers)
    assert (caught.value.answer.status, caught.value.answer.close) == (400, True)


def test_http_1_0_needs_no_host_but_knows_no_chunks() -> None:
    read(version="1.0")
    with pytest.raises(Rejection):
        read(HOST, (b"transfer-encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize("query", [b"a=\r\nx: y", b"a b", b"\xff", b"\x00"])
def test_a_query_that_could_end_the_request_line_is_refused(query: bytes) -> None:
    with pytest.raises(Rejection):
        read(HOST, query=query)


def test_headers_keep_their_order_and_number() -> None:
    head = read(HOST, (b"b", b"1"), (b"a", b"2"), (b"b", b"3"), query=b"q=1")
    assert sent(head) == (
        b"POST /v1/embeddings?q=1 HTTP/1.1\r\nhost: localhost\r\nx-request-id: id\r\nb: 1\r\na: 2\r\nb: 3\r\n"
    )


def test_what_the_connection_header_names_is_dropped_both_ways() -> None:
    nominating: Header = (b"connection", b"X-A , x-b")
    head = read(HOST, nominating, (b"x-a", b"1"), (b"x-b", b"1"), (b"x-c", b"1"))
    assert sent(head).endswith(b"x-request-id: id\r\nx-c: 1\r\n")
    lines = [b"x-a", b": ", b"1", b"\r\n", b"x-c", b": ", b"1", b"\r\n"]
    assert without(lines, nominated([nominating[1]])) == [b"x-c", b": ", b"1", b"\r\n"]


def test_a_sane_request_id_is_kept_and_any_other_replaced() -> None:
    assert read(HOST, (b"x-request-id", b"abc-1")).own_id == b"abc-1"
    assert read(HOST, (b"x-request-id", b"a"), (b"x-request-id", b"b")).own_id is None
    assert read(HOST, (b"x-request-id", b"two words")).own_id is None
    assert len(new_request_id()) == 32
    assert new_request_id() != new_request_id()


@pytest.mark.parametrize(
    "name", [b"authorization", b"x-api-key", b"cookie", b"origin", b"x-forwarded-for", b"a_b"]
)
def test_what_is_between_the_client_and_memoria_stays_there(name: bytes) -> None:
    assert name not in sent(read(HOST, (name, b"1"), (b"x-c", b"1")))


def test_who_may_ask_is_not_for_engines_to_say() -> None:
    assert b"access-control-allow-origin" in NOT_FOR_CLIENTS
