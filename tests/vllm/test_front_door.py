"""What of real vLLM's surface is reachable through memoria, and what a client that leaves does to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.proxy.routing.routes import ROUTES
from memoria.vllm.install.find import data_home, find
from tests.faults.report import Figure
from tests.vllm.daemon import RealDaemon
from tests.vllm.engine_socket import ask_engine

ANSWERED_BY_MEMORIA = {"/health", "/metrics", "/v1/models"}


@pytest.fixture(scope="module")
def vllms_own() -> list[tuple[str, str]]:
    """Method and path of all that vLLM's application can have, with its development mode and its docs."""
    root = find("auto", data_home(os.environ), "cpu").root
    assert root is not None
    told = subprocess.run(
        [root / "bin" / "python", Path(__file__).with_name("list_routes.py")],
        env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    routes = [tuple(route) for route in json.loads(told.stdout.splitlines()[-1])]
    assert {("POST", "/sleep"), ("POST", "/collective_rpc"), ("GET", "/docs"), ("Mount", "/static")} <= set(
        routes
    )
    return routes


@pytest.mark.parametrize("name", ["embedding", "generation"])
def test_every_route_of_vllm_that_is_not_in_the_table_is_denied(
    daemon: RealDaemon, vllms_own: list[tuple[str, str]], figure: Figure, name: str
) -> None:
    """What the running engine tells of itself, and what any could be made to serve; on the main port and on
    the engine's own. The engine itself counts what reached it."""
    documented = json.loads(ask_engine(daemon, name, "/openapi.json"))["paths"]
    routes = {(method.upper(), path) for path, methods in documented.items() for method in methods}
    asked = 0
    before = requests_seen(daemon, name)
    for port in (daemon.port, getattr(daemon, f"{name}_port")):
        for method, path in sorted(denied(routes | set(vllms_own))):
            status, answer = ask_plainly(port, method, path)
            assert status in (404, 405), (port, method, path)
            assert method == "HEAD" or "error" in json.loads(answer), (port, method, path)
            asked += 1
    assert asked > 100
    assert requests_seen(daemon, name) == before
    figure(36, f"denied routes of the {name} engine", asked)
    figure(36, "of them exposed", 0)


def denied(routes: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """As requests: what is mounted is asked for something in it, and any path for an upgrade, too."""
    for method, path in routes:
        if method == "Mount":
            yield "GET", f"{path}/x"
        elif path not in ANSWERED_BY_MEMORIA:
            asked = re.sub(r"\{[^}]*\}", "x", path)
            served = {route.method for route in ROUTES if _is_below(asked, route.path)}
            plainly = "GET" if method == "APIWebSocketRoute" else method
            if plainly not in served:
                yield plainly, asked
            if not served:
                yield from (("UPGRADE", asked), ("DELETE", asked))


def _is_below(path: str, pattern: str) -> bool:
    """`/v1/responses/render` is a response's name to the table, and a route to vLLM."""
    return re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", pattern), path) is not None


UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version": "13",
}


def ask_plainly(port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        if method == "UPGRADE":
            connection.request("GET", path, headers=UPGRADE)
        else:
            connection.request(method, path, body=b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def requests_seen(daemon: RealDaemon, name: str) -> dict[str, float]:
    """By handler, as the engine counts them; what memoria and this test ask it is left out."""
    metrics = ask_engine(daemon, name, "/metrics").decode()
    found = re.findall(r'^http_requests_total\{handler="([^"]*)"[^}]*\} ([\d.e+]+)$', metrics, re.M)
    assert found
    return {handler: float(count) for handler, count in found if handler not in ("/metrics", "/openapi.json")}


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
