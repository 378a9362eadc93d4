"""Responses of memoria's own routes: errors in OpenAI's shape, query parameters, endless streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from memoria.proxy.errors import Answer, Rejection, method_not_allowed, route_not_found
from memoria.proxy.routing.routes import nearest

MAX_NUMBER = 2**53 - 1  # the largest integer that every JSON reader holds exactly
MAX_STREAMS = 64
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


def to_json(content: object) -> bytes:
    """JSON, also of dataclasses. Quick, since a status of many engines must not hold up the relay."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:  # a path that is not UTF-8
        return json.dumps(msgspec.to_builtins(content), separators=(",", ":")).encode()


class Json(JSONResponse):
    def render(self, content: object) -> bytes:
        return to_json(content)


def response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, media_type="application/json")


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["raw_path"]  # as it came: what an escape stands for may well be a route
    answer = route_not_found(scope["method"], path.decode("latin-1"), nearest(path))
    await response(answer)(scope, receive, send)


async def on_rejection(_: Request, error: Exception) -> Response:
    """Starlette's exception handler for `Rejection`."""
    assert isinstance(error, Rejection)
    return response(error.answer)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusal: a method that the route does not have."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "").split(", ")
    return response(method_not_allowed(request.method, allowed))


def number(request: Request, name: str, default: int, *, most: int) -> int:
    """An integer of the query, from 0 to `most`. Raises `Rejection`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most):
        raise bad_parameter(name, f"must be a whole number from 0 to {most}")
    return int(text)


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """`true` or `false` of the query. Raises `Rejection`."""
    text = request.query_params.get(name)
    if text not in (None, "true", "false"):
        raise bad_parameter(name, "must be true or false")
    return default if text is None else text == "true"


def bad_parameter(name: str, what: str) -> Rejection:
    return Rejection(Answer(400, f"`{name}` {what}", "bad_request", name))


class Streams:
    """Limits the number of endless responses. Stalled readers are disconnected by their connection
    (memoria/proxy/downstream/connection.py).

    `open` counts HTTP and the admin socket apart, so that HTTP clients cannot lock the owner out."""

    def __init__(self) -> None:
        self.open = {"http": 0, "socket": 0}

    def response(self, content: AsyncIterator[str], media_type: str) -> StreamingResponse:
        return _Stream(self, content, media_type)


class _Stream(StreamingResponse):
    def __init__(self, streams: Streams, content: AsyncIterator[str], media_type: str) -> None:
        super().__init__(content, media_type=media_type, headers=STREAM_HEADERS)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Rejection`: 503 where `MAX_STREAMS` are open."""
        way = "socket" if scope["server"][1] is None else "http"
        if self._streams.open[way] >= MAX_STREAMS:
            raise Rejection(
                Answer(
                    503,
                    f"{MAX_STREAMS} streams of events and logs are open already",
                    "too_many_streams",
                    headers=((b"retry-after", b"5"),),
                )
            )
        self._streams.open[way] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open[way] -= 1
