"""The fallback ASGI route: a 404 with OpenAI's error body."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from memoria.proxy.errors import route_not_found


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    answer = route_not_found(scope["method"], scope["path"])
    body = answer.body
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
