"""A hub on the loopback: a model's files, and everything that can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 64 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class Hub(ThreadingHTTPServer):
    """`files` of `org/name` by revision and path; `requests` and the `tokens` they came with are recorded. A
    commit stands for `main`.

    `refusal`: status and error code of every answer. `cuts`: how many more answers end after `cut_at` bytes.
    `answering`: while it is not set, no request is answered; `silent`: how the paths end that never are.
    `open`: while it is not set, an answer waits after `cut_at` bytes. `claims`: sizes that the hub names
    wrongly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.claims: dict[str, int] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.ranges: list[str] = []
        self.sent = 0
        self.refusal: tuple[int, str | None] | None = None
        self.cuts, self.cut_at = 0, 2**20
        self.answering = threading.Event()
        self.answering.set()
        self.silent: str | None = None
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.stopped = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Clients that are ended close their connections."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def content(self, revision: str, name: str) -> bytes | None:
        return self.files.get(("main" if revision == COMMIT else revision, name))


@contextmanager
def serving(tls: SSLContext | None = None) -> Iterator[Hub]:
    hub = Hub()
    if tls is not None:
        hub.socket = tls.wrap_socket(hub.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    for event in (hub.open, hub.answering, hub.stopped):
        event.set()
    hub.shutdown()
    thread.join()
    hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {self.path}")
        hub.tokens.add(self.headers.get("Authorization"))
        hub.answering.wait()
        if hub.silent is not None and path.endswith(hub.silent):
            hub.stopped.wait()
        if hub.refusal is not None:
            self._refuse(*hub.refusal)
        elif match := _INFO.fullmatch(path):
            self._info(match["repo"], match["revision"] or "main")
        elif match := _FILE.fullmatch(path):
            self._file(match["repo"], match["revision"], match["name"], with_body=with_body)
        else:
            self._refuse(404, "RepoNotFound")

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _info(self, repo: str, revision: str) -> None:
        hub = self.server
        revision = "main" if revision == COMMIT else revision
        names = [name for of, name in hub.files if of == revision]
        if repo != "org/name" or not names:
            self._refuse(404, "RevisionNotFound" if repo == "org/name" else "RepoNotFound")
            return
        sizes = {name: hub.claims.get(name, len(hub.files[revision, name])) for name in names}
        siblings = [{"rfilename": name, "size": size, "blobId": "0"} for name, size in sizes.items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, repo: str, revision: str, name: str, *, with_body: bool) -> None:
        hub = self.server
        content = hub.content(revision, name) if repo == "org/name" else None
        if content is None:
            self._refuse(404, "EntryNotFound" if repo == "org/name" else "RepoNotFound")
            return
        asked = _RANGE.fullmatch(self.headers.get("Range") or "")
        body = content
        if asked:
            hub.ranges.append(self.headers["Range"])
            body = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
        claimed = len(body) if with_body else hub.claims.get(name, len(body))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header(
                "Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(body) - 1}/{len(content)}"
            )
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(claimed))
        self.end_headers()
        if with_body:
            self._send(body)

    def _send(self, body: bytes) -> None:
        hub = self.server
        cut = len(body) > hub.cut_at and hub.cuts > 0
        hub.cuts -= cut
        for start in range(0, len(body), CHUNK):
            if start >= hub.cut_at:
                hub.reached.set()
                if cut:
                    self.close_connection = True
                    return
                hub.open.wait()
            chunk = body[start : start + CHUNK]
            hub.sent += len(chunk)
            self.wfile.write(chunk)

    def log_message(self, *_: object) -> None:
        pass
