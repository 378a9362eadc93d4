"""A small blocking HTTP client: an answer at once, or a stream that the test reads at its own pace."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by their names in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error, in OpenAI's shape."""
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


def ask(port: int, method: str, path: str, body: object = None, tls: ssl.SSLContext | None = None) -> Answer:
    """Raises `OSError` where nobody listens."""
    connection = connect(port, tls)
    try:
        return _answer(_send(connection, method, path, body))
    finally:
        connection.close()


def connect(port: int, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if tls is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=tls)


class Streaming:
    """A completion that is streamed: read events one by one, or the rest of them."""

    def __init__(
        self,
        port: int,
        body: dict[str, Any],
        path: str = "/v1/completions",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._connection = connect(port, tls)
        self._response = _send(self._connection, "POST", path, {**body, "stream": True})
        self.status = self._response.status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def event(self) -> str:
        """The next event's data. Empty at the end of the stream."""
        while (line := self._response.readline()) == b"\n":
            pass
        return line.decode().removeprefix("data: ").rstrip("\n")

    def rest(self) -> list[str]:
        return list(iter(self.event, ""))


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: object
) -> http.client.HTTPResponse:
    if body is None:
        connection.request(method, path)
    else:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def _answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read().decode())
