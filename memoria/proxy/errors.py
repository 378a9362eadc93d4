"""memoria's own error answers: OpenAI's error body, with a status, a code to program against and a hint.

`{"error": {"message", "type", "param", "code"}}` is what OpenAI's clients turn into exceptions; vLLM uses
the same four fields. Engines' answers are never built here: they pass through unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from memoria.proxy.http.messages import Header

RETRY_CUT = 10  # seconds; a start takes at least that long
RETRY_BUSY = 1  # seconds; places are freed all the time
MODEL_NOT_FOUND = "model_not_found"
_SHOWN = 200  # characters of a client's own text that an answer repeats


@dataclass(frozen=True, slots=True)
class Answer:
    """An error for the client. `close`: the connection cannot be kept, since what follows on it is not
    certainly the next request (or is the rest of an unwanted body)."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: tuple[Header, ...] = ()
    close: bool = False

    @property
    def body(self) -> bytes:
        if self.status == 204:
            return b""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    @property
    def event(self) -> bytes:
        """The error as one server-sent event, for a stream that has begun."""
        return b"data: " + self.body + b"\n\n"


class Rejection(Exception):
    """Ends a request with an answer of memoria's own."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Refusal(Rejection):
    """The request cannot go to its engine now. `retry_after` (seconds) becomes the Retry-After header.
    `ready_in`: the least number of seconds until it can, without intervention, so that it may wait that long;
    None: unknown."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        retry_after: int | None = None,
        ready_in: float | None = None,
    ) -> None:
        headers = () if retry_after is None else ((b"retry-after", b"%d" % retry_after),)
        super().__init__(Answer(status, message, code, headers=headers))
        self.ready_in = ready_in


def cors_preflight(headers: tuple[Header, ...]) -> Answer:
    """To a browser's CORS preflight."""
    return Answer(204, "", "", headers=headers)


def bad_request(message: str, *, code: str = "bad_request", param: str | None = None) -> Answer:
    return Answer(400, message, code, param)


def bad_framing(message: str) -> Answer:
    """To a request whose end or target is ambiguous (request smuggling)."""
    return Answer(400, message, "bad_request", close=True)


def host_not_allowed(host: bytes) -> Answer:
    message = f"Host `{_ascii(host)}` is not allowed (add it to `allowed_hosts`, without the port)"
    return Answer(421, message, "host_not_allowed")


def origin_not_allowed(origin: bytes) -> Answer:
    message = f"Origin `{_ascii(origin)}` is not allowed (add it to `cors.origins`)"
    return Answer(403, message, "origin_not_allowed")


def foreign_origin(origin: bytes) -> Answer:
    message = f"Origin `{_ascii(origin)}` is not allowed here, only memoria's own page is"
    return Answer(403, message, "origin_not_allowed")


def site_not_allowed() -> Answer:
    message = (
        "Requests from other sites' pages are not allowed (open the address directly, or add the site to "
        "`cors.origins`)"
    )
    return Answer(403, message, "origin_not_allowed")


def page_must_send_json(cors: tuple[Header, ...], *, form: bool) -> Answer:
    message = f"Web pages must send application/json{' or multipart/form-data' if form else ''} here"
    return Answer(415, message, "unsupported_media_type", headers=cors)


def invalid_api_key(*, given: bool, cors: tuple[Header, ...] = ()) -> Answer:
    what = "The API key is not valid" if given else "An API key is required"
    message = f"{what} (send it as `Authorization: Bearer KEY` or `x-api-key: KEY`)"
    challenge = (b"www-authenticate", b'Bearer realm="memoria"')
    return Answer(401, message, "invalid_api_key", headers=(challenge, *cors))


def model_required(models: Iterable[str]) -> Answer:
    message = f"`model` is required: several engines serve this path. Models: {_names(models)}"
    return Answer(400, message, "model_required", "model")


def model_unnamed(models: Iterable[str]) -> Answer:
    message = (
        "Several engines serve this path: name the model in the query (`?model=NAME`), or use the engine's "
        f"own port. Models: {_names(models)}"
    )
    return Answer(400, message, "model_required", "model")


def websocket_only(path: str) -> Answer:
    headers = ((b"upgrade", b"websocket"), (b"connection", b"upgrade"))
    return Answer(426, f"{path} is a WebSocket: send an upgrade request", "websocket_only", headers=headers)


def model_not_found(model: str, models: Iterable[str]) -> Answer:
    message = f"The model `{_short(model)}` does not exist. Models: {_names(models)}"
    return Answer(404, message, MODEL_NOT_FOUND, "model")


def malformed() -> Answer:
    return bad_framing("The request is not valid HTTP/1.1")


def head_too_large(most: int, fields: int) -> Answer:
    message = f"The request head is larger than {most} bytes, or has more than {fields} fields"
    return Answer(431, message, "head_too_large", close=True)


def trailer_too_large(most: int) -> Answer:
    message = f"More than {most} bytes came that are no part of the body (a trailer, extensions of chunks)"
    return Answer(431, message, "trailer_too_large", close=True)


def too_many_connections() -> Answer:
    headers = ((b"retry-after", b"%d" % RETRY_CUT),)
    return Answer(503, "Too many connections are open", "too_many_connections", headers=headers, close=True)


def route_not_found(method: str, path: str, nearest: str | None = None) -> Answer:
    """`nearest`: the path that is served in its stead."""
    hint = f" (did you mean `{nearest}`? A client's base URL ends in `/v1`, once)" if nearest else ""
    return Answer(404, f"No route {method} {_short(path)}{hint}", "route_not_found")


def not_served(path: str) -> Answer:
    return Answer(404, f"No engine serves {_short(path)}", "route_not_served")


def method_not_allowed(method: str, allowed: Iterable[str]) -> Answer:
    allow = ", ".join(sorted(allowed))
    message = f"Method {_short(method)} is not allowed (use {allow})"
    return Answer(405, message, "method_not_allowed", headers=((b"allow", allow.encode()),))


def upload_stalled(seconds: float) -> Answer:
    return Answer(
        408, f"The client sent nothing of the request body for {seconds:g} s", "upload_stalled", close=True
    )


def body_too_large(limit: int) -> Answer:
    message = f"The request body is larger than {limit} bytes (`limits.body_mb`)"
    return Answer(413, message, "body_too_large", close=True)


def engine_unreachable(engine: str) -> Answer:
    return Answer(502, f"Engine `{engine}` does not accept connections", "engine_unreachable")


def engine_lost(engine: str) -> Answer:
    message = f"Engine `{engine}` closed the connection before its response was complete"
    return Answer(502, message, "engine_lost")


def engine_stopping(engine: str) -> Answer:
    message = f"Engine `{engine}` is being stopped; its requests are cut"
    return Answer(503, message, "engine_stopping", headers=((b"retry-after", b"%d" % RETRY_CUT),))


def engine_garbled(engine: str) -> Answer:
    message = f"Engine `{engine}` sent a response that is not valid HTTP, or whose head is too large"
    return Answer(502, message, "engine_garbled")


def engine_silent(engine: str, seconds: float) -> Answer:
    return Answer(
        504, f"Engine `{engine}` sent nothing for {seconds:g} s (`timeouts.idle`)", "engine_timeout"
    )


def engine_busy(engine: str, in_flight: int, queued: int) -> Refusal:
    message = f"Engine `{engine}` is busy: {in_flight} requests in flight, {queued} queued"
    return Refusal(429, message, "engine_busy", retry_after=RETRY_BUSY, ready_in=0.0)


def hold_full(limit: int) -> Refusal:
    message = f"There was no room for the request body: those here have reached {limit} bytes (`hold.bytes`)"
    return Refusal(429, message, "hold_full", retry_after=RETRY_BUSY, ready_in=0.0)


def engine_doubted(engine: str) -> Refusal:
    message = f"Engine `{engine}` does not accept connections"
    return Refusal(503, message, "engine_not_ready", retry_after=RETRY_BUSY, ready_in=0.0)


def engine_gone(engine: str) -> Refusal:
    message = f"Engine `{engine}` is no longer in the configuration"
    return Refusal(503, message, "engine_gone", retry_after=RETRY_BUSY)


def stopping() -> Refusal:
    return Refusal(503, "memoria is stopping", "stopping", retry_after=RETRY_CUT)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _ascii(text: bytes) -> str:
    return _short(text.decode("ascii", "backslashreplace"))


def _names(models: Iterable[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)
