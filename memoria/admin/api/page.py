"""The web page at `/` and its files: written by hand, no build step, no other host."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from memoria.engine.lifecycle import FACTS, Event, accepts

STATIC = Path(__file__).parents[1] / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """Files are read once. Browsers revalidate each time and get 304."""
    files = {file.name: file.read_bytes() for file in sorted(STATIC.iterdir()) if file.suffix in TYPES}
    files["states.js"] = _states().encode()
    return [
        _route("/" if name == "index.html" else f"/page/{name}", content, TYPES[Path(name).suffix])
        for name, content in files.items()
    ]


def _states() -> str:
    """A script with what the page must know of each state of an engine."""
    states = {
        state: {"tone": facts.tone, "startable": accepts(state, Event.START)}
        for state, facts in FACTS.items()
    }
    return f"export const STATES = {json.dumps(states)};\n"


def _route(path: str, content: bytes, kind: str) -> Route:
    headers = {**HEADERS, "content-type": kind, "etag": f'"{sha256(content).hexdigest()[:16]}"'}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return Route(path, answer, methods=["GET"])
