"""What must not appear where it does not belong: secrets, and a client's raw bytes in a log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.faults.report import Figure
from tests.integration.daemon import PATIENCE, Box, RunningDaemon
from tests.integration.http_client import Streaming
from tests.integration.otlp_collector import SOON, Collector

CANARIES = {
    "HF_TOKEN": "hf_canaryTokenOfTheHub",
    "VLLM_API_KEY": "canary-key-of-vllm",
    "ENGINE_SECRET": "canary-of-one-engine",
    "CLIENT_KEY": "canary-0123456789-of-a-client",
    "ADMIN_KEY": "canary-0123456789-of-an-admin",
    "PROMPT": "canaryPromptOfSomebody",
    "QUERY": "canaryQueryOfSomebody",
}
HOSTILE = (b"\x1b[2J\x1b]0;t\x07", b"\r\n2026-11-24 ERROR forged", b"\n", b"\x00", b"\x9b31m", b"\xc2\x9b31m")


COMMANDS = (
    ["status"],
    ["status", "--json"],
    ["requests", "-n", "500"],
    ["requests", "-n", "500", "--json"],
    ["config"],
    ["config", "--json"],
    ["logs"],
    ["reload", "--dry-run"],
    ["check"],
)
ADMIN = ("/status", "/events", "/requests?limit=500")


@pytest.fixture
def keyed(box: Box) -> Box:
    for name in ("keys", "admins"):
        keys = box.folder / name
        keys.write_text(f"ana: {CANARIES['CLIENT_KEY' if name == 'keys' else 'ADMIN_KEY']}\n")
        keys.chmod(0o600)
    box.configure(top="keys: ./keys\nadmin_keys: ./admins")
    text = box.file.read_text().replace("dir: logs,", "dir: logs, requests: json,")
    box.file.write_text(text + '    env: {ENGINE_SECRET: "${ENGINE_SECRET}"}\n')
    return box


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_secret_stays_where_it_belongs(keyed: Box, collector: Collector, figure: Figure) -> None:
    """Searched in: the command lines of all processes, every log, what commands, endpoints, metrics and the
    admin API say, and the spans that a collector gets."""
    secrets = {name: CANARIES[name] for name in ("HF_TOKEN", "VLLM_API_KEY", "ENGINE_SECRET")}
    daemon = keyed.start(
        "-v", LOG_LEVEL="DEBUG", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON, **secrets
    )
    daemon.until_ready()
    said = {"answers": _ask_in_vain(keyed)}
    said["command lines"] = [
        " ".join(psutil.Process(pid).cmdline()) for pid in [daemon.pid, *keyed.survivors()]
    ]
    for command in COMMANDS:
        done = keyed.call(*command, **secrets)
        assert done.returncode == 0, (command, done.stderr)
        said[f"memoria {' '.join(command)}"] = [done.stdout, done.stderr]
    head = f"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx-api-key: {CANARIES['CLIENT_KEY']}"
    said["metrics"] = [_raw(keyed, f"{head}\r\nconnection: close\r\n\r\n".encode())]
    said["admin"] = [_admin(keyed, path) for path in ADMIN]
    assert daemon.stop() == 0
    said["daemon"] = [*daemon.out.lines, *daemon.err.lines]
    said["spans"] = list(collector.everything())
    logs = {file.name: file.read_text() for file in (keyed.folder / "logs").iterdir()}
    said |= {name: [text] for name, text in logs.items()}
    # the searched texts must exist, and cover the requests that contain the canaries
    assert logs["memoria.requests.log"].count("\n") > 20
    for place in ("spans", "admin", "metrics", "memoria requests -n 500 --json"):
        assert "embedding" in "".join(said[place]), place
    found = [
        (place, name)
        for place, texts in said.items()
        for name, canary in CANARIES.items()
        if any(canary in text for text in texts)
    ]
    assert found == []
    figure(38, "characters searched", sum(len(text) for texts in said.values() for text in texts))
    figure(38, "places", len(said))
    figure(38, "hits", len(found))


def _admin(box: Box, path: str) -> str:
    """What comes within a second: events are followed without an end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        client.connect(str(box.runtime / "admin.sock"))
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        said = b""
        with suppress(TimeoutError):
            while piece := client.recv(1 << 16):
                said += piece
    assert said.startswith(b"HTTP/1.1 200"), said
    return said.decode()


def _ask_in_vain(box: Box) -> list[str]:
    """Requests with a right key, with one that is nearly right, with a prompt, with all of it in the wrong
    place; what was answered."""
    key, prompt, query = CANARIES["CLIENT_KEY"], CANARIES["PROMPT"], CANARIES["QUERY"]
    body = f'{{"input":"{prompt}","prompt":"{prompt}"}}'
    broken = f'{{"input":"{prompt}'
    answers = []
    admin = CANARIES["ADMIN_KEY"]
    for authorization in (f"Bearer {key}", f"Bearer {key}x", f"Basic {key}", key, f"Bearer {admin}"):
        for path in ("/v1/completions", "/v1/embeddings", "/v1/nothing", "/health", "/v1/models", "/admin/x"):
            for content in (body, broken):
                lines = (
                    f"POST {path}?q={query} HTTP/1.1",
                    "host: localhost",
                    "connection: close",
                    f"authorization: {authorization}",
                    f"content-length: {len(content)}",
                )
                answers.append(_raw(box, "\r\n".join((*lines, "", content)).encode()))
        answers.append(_raw(box, f"GET /v1 x HTTP/1.1\r\nx-api-key: {key}\r\n\r\n".encode()))
    return answers


def _raw(box: Box, request: bytes, *, leave: bool = False) -> str:
    """What comes until memoria closes; `leave`: the request may be half of one, and no more will come."""
    with socket.create_connection(("127.0.0.1", box.ports.main), timeout=PATIENCE) as client:
        client.sendall(request)
        if leave:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b"")).decode("latin-1")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_client_writes_cannot_forge_a_line_of_the_log(box: Box, figure: Figure, form: str) -> None:
    box.configure()
    box.vllm.set_faults("generation", vanish_after_tokens=1, log=("\x1b[31mred\x1b[0m \x07bell",))
    daemon = box.start("-v", LOG_FORMAT=form, LOG_LEVEL="DEBUG")
    daemon.until_ready()
    for text in HOSTILE:
        for request in _requests_with(text):
            _raw(box, request, leave=True)
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 2}) as stream:
        stream.rest()  # the engine vanishes, and the log has the request's id
    _until_told(daemon, form)
    daemon.stop()
    lines = [*daemon.out.lines, *daemon.err.lines]
    forbidden = {chr(code) for code in range(0x20) if chr(code) != "\t"} | {chr(c) for c in range(0x7F, 0xA0)}
    assert [line for line in lines if forbidden & set(line)] == []
    assert [line for line in lines if line.startswith("2026-11-24 ERROR forged")] == []
    figure(37, "hostile requests", sum(len(_requests_with(text)) for text in HOSTILE))
    figure(37, "lines of the log searched", len(lines))


def _requests_with(text: bytes) -> list[bytes]:
    def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
        lines = (b"POST " + path + b" HTTP/1.1", b"host: localhost", *headers)
        return b"\r\n".join((*lines, b"content-length: %d" % len(body))) + b"\r\n\r\n" + body

    model = b'{"prompt":"a","model":"' + text + b'"}'
    escaped = b'{"prompt":"a","model":"' + b"".join(b"\\u%04x" % byte for byte in text) + b'"}'
    return [
        post(b"/v1/" + text, b"{}"),
        post(b"/v1/completions", model),
        post(b"/v1/completions", escaped),
        post(b"/v1/completions", b'{"prompt":"a"}', b"x-request-id: a" + text + b"b"),
        post(b"/v1/completions", b'{"prompt":"a"}', b"origin: http://" + text),
        b"GET /v1/models/" + text + b" HTTP/1.1\r\nhost: a" + text + b"\r\n\r\n",
    ]


def _until_told(daemon: RunningDaemon, form: str) -> None:
    if form == "json":
        daemon.told("generation", "backoff")
    else:
        daemon.out.wait(lambda line: "generation" in line and "backoff" in line)
