"""Something that answers on a daemon's admin socket, in bytes that the test chooses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Impostor:
    """`answers` by the paths that are asked for; `*` stands for all others."""

    def __init__(self, path: Path, answers: Mapping[str, bytes]) -> None:
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                path = client.recv(1 << 16).split(b" ")[1].decode().partition("?")[0]
                client.sendall(self._answers.get(path, self._answers.get("*", NOT_FOUND)))


def ok(body: object, kind: str = "application/json", status: str = "200 OK") -> bytes:
    """An HTTP answer; a body that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + raw


def refusal(message: str, code: str, status: str = "404 Not Found") -> bytes:
    return ok({"error": {"message": message, "type": "", "param": None, "code": code}}, status=status)


def stream(*events: tuple[str, Any]) -> bytes:
    text = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events)
    return ok(text.encode(), "text/event-stream")


NOT_FOUND = refusal("No route GET /x", "route_not_found")
