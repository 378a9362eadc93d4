"""Errors of memoria's own routes, in the shape of all others (OpenAI's)."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from memoria.proxy.errors import Answer, Rejection, method_not_allowed


def response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, media_type="application/json")


async def on_rejection(_: Request, error: Exception) -> Response:
    """An exception handler for Starlette."""
    assert isinstance(error, Rejection)
    return response(error.answer)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a method that a route does not have."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "").split(", ")
    return response(method_not_allowed(request.method, allowed))


def number(request: Request, name: str, default: int, *, most: int) -> int:
    """A whole number of the query, from 0 to `most`. Raises `Rejection`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most):
        raise wrong(name, f"must be a whole number from 0 to {most}")
    return int(text)


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """`true` or `false` of the query. Raises `Rejection`."""
    text = request.query_params.get(name)
    if text not in (None, "true", "false"):
        raise wrong(name, "must be true or false")
    return default if text is None else text == "true"


def wrong(name: str, what: str) -> Rejection:
    return Rejection(Answer(400, f"`{name}` {what}", "bad_request", name))
