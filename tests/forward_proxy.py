"""A company's proxy on the loopback: every host that it is to reach is one server of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_WR, create_connection, socket
from urllib.parse import urlsplit


class ForwardProxy(ThreadingHTTPServer):
    """`reached`: the hosts that clients named, each with its port or scheme."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = ("127.0.0.1", port)
        self.reached: set[str] = set()

    def handle_error(self, *_: object) -> None:
        """Clients that are ended close their connections."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def proxy_to(port: int) -> Iterator[ForwardProxy]:
    proxy = ForwardProxy(port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ForwardProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_CONNECT(self) -> None:
        self.server.reached.add(self.path)
        with create_connection(self.server.target) as upstream:
            self.send_response(200, "Connection established")
            self.end_headers()
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join()
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.reached.add(f"{parts.scheme}://{parts.netloc}")
        upstream = HTTPConnection(*self.server.target)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        upstream.request(self.command, path, headers={**dict(self.headers), "Connection": "close"})
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        upstream.close()

    def do_HEAD(self) -> None:
        self.do_GET()


def _pump(source: socket, sink: socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
        sink.shutdown(SHUT_WR)
