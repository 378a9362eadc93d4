"""What a browser on this machine may be made to ask, at the door of a real daemon: no name but memoria's own
(DNS rebinding), no page but its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import PATIENCE, Box

BODY = b'{"input":"a","prompt":"a"}'
ASKED = (
    (b"POST", b"/v1/embeddings"),
    (b"POST", b"/v1/completions"),
    (b"GET", b"/v1/models"),
    (b"GET", b"/health"),
    (b"GET", b"/nothing"),
)
OTHER_NAMES = (
    b"evil.example",
    b"127.0.0.1.evil.example",
    b"localhost.evil.example",
    b"evil.example:8200",
    b"0.0.0.0",
    b"192.168.0.1",
    b"[::2]",
    b"2130706433",
    b"0x7f.1",
    b"localhost.",
    b"local\xe2\x80\x8bhost",
)
OTHER_PAGES = (
    b"origin: https://evil.example",
    b"origin: http://localhost.evil.example",
    b"origin: http://127.0.0.1:1",
    b"origin: https://127.0.0.1:%d",
    b"origin: null",
    b"origin: file://",
    b"origin: http://localhost:%d, https://evil.example",
)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    yield box
    box.close()


def ports(box: Box) -> tuple[int, int]:
    return box.ports.main, box.ports.embedding


def status(port: int, method: bytes, path: bytes, *headers: bytes) -> int:
    lines = [method + b" " + path + b" HTTP/1.1", *headers, b"connection: close"]
    if method == b"POST":
        lines.append(b"content-length: %d" % len(BODY))
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + (BODY if method == b"POST" else b""))
        return int(client.recv(1 << 16).split(b" ")[1])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_another_name_than_its_own_is_misdirected(box: Box, name: bytes) -> None:
    for port in ports(box):
        for method, path in ASKED:
            assert status(port, method, path, b"host: " + name) in {400, 421}, (method, path)


@pytest.mark.parametrize("header", OTHER_PAGES)
def test_a_page_of_another_site_is_refused(box: Box, header: bytes) -> None:
    for port in ports(box):
        said = header.replace(b"%d", b"%d" % port)
        host = b"host: localhost:%d" % port
        for method, path in ASKED[:2]:
            kind = b"content-type: application/json"
            assert status(port, method, path, host, kind, said) in {400, 403}, (method, path)


@pytest.mark.parametrize(
    "kind", [b"text/plain", b"application/x-www-form-urlencoded", b"", b"multipart/form-data"]
)
def test_a_page_cannot_send_what_a_browser_lets_it_send_unasked(box: Box, kind: bytes) -> None:
    """A form's content types need no preflight."""
    for port in ports(box):
        origin = b"origin: http://localhost:%d" % port
        headers = (b"host: localhost:%d" % port, origin, b"content-type: " + kind)
        assert status(port, b"POST", b"/v1/embeddings", *headers) in {400, 403, 415}
