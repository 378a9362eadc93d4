"""Straight at an engine's own socket, past memoria."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import psutil

from tests.vllm.daemon import RealDaemon


class EngineSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_socket(daemon: RealDaemon, name: str) -> Path:
    """Of the start that is there now."""
    start_id = psutil.Process(daemon.status()[name]["pid"]).environ()["MEMORIA_START"]
    return daemon.runtime_dir / "engines" / f"{start_id}.sock"


def ask_engine(daemon: RealDaemon, name: str, path: str) -> bytes:
    return get(engine_socket(daemon, name), path)[1]


def get(engine: Path, path: str) -> tuple[int, bytes]:
    """Raises `OSError` or `HTTPException` where nobody is there any more."""
    connection = EngineSocket(engine)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
