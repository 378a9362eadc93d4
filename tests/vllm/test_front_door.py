"""What of real vLLM's surface is reachable through memoria, and what a client that leaves does to it."""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from memoria.proxy.routes import ROUTES
from tests.vllm.daemon import RealDaemon

ANSWERED_BY_MEMORIA = {"/health", "/metrics", "/v1/models"}


class _Socket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_engine(daemon: RealDaemon, name: str, path: str) -> bytes:
    """Straight at the engine's own socket, past memoria."""
    start_id = psutil.Process(daemon.status()[name]["pid"]).environ()["MEMORIA_START"]
    connection = _Socket(daemon.runtime_dir / "engines" / f"{start_id}.sock")
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


@pytest.mark.parametrize("name", ["embedding", "generation"])
def test_every_route_of_the_engine_that_is_not_in_the_table_is_denied(daemon: RealDaemon, name: str) -> None:
    paths: dict[str, Any] = json.loads(ask_engine(daemon, name, "/openapi.json"))["paths"]
    served = {(route.method, route.path) for route in ROUTES}
    denied = [
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if path not in ANSWERED_BY_MEMORIA and not _listed(method.upper(), path, served)
    ]
    assert ("GET", "/version") in denied
    for method, path in denied:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        connection.request(
            method, path.replace("{", "").replace("}", ""), body=b"{}" if method == "POST" else None
        )
        answer = connection.getresponse()
        assert answer.status in (404, 405), (method, path)
        assert "error" in json.loads(answer.read())
        connection.close()


def _listed(method: str, path: str, served: set[tuple[str, str]]) -> bool:
    plain = re.sub(r"\{[^}]*\}", "{}", path)
    return any(m == method and re.sub(r"\{[^}]*\}", "{}", p) == plain for m, p in served)


def counted(daemon: RealDaemon, series: str) -> float:
    """The sum of the generation engine's series that begin so, as the engine itself counts."""
    metrics = ask_engine(daemon, "generation", "/metrics").decode()
    found = re.findall(rf"^{re.escape(series)}[^\n]* ([\d.e+]+)$", metrics, re.M)
    assert found, series
    return sum(map(float, found))


RUNNING = "vllm:num_requests_running{"
TOKENS = "vllm:generation_tokens_total{"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_in_the_engine(daemon: RealDaemon, stream: bool) -> None:
    before = counted(daemon, TOKENS)
    body = json.dumps({"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=60) as client:
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        daemon.wait(lambda: counted(daemon, RUNNING) == 1, "the request runs")
        if stream:
            assert client.recv(10)
    daemon.wait(lambda: counted(daemon, RUNNING) == 0, "the request has ended")
    assert counted(daemon, TOKENS) - before < 2000
