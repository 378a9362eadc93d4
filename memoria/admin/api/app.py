"""memoria's own API: whole on the admin socket, and behind a door under `/admin/` of the main address.

`openapi.json` beside this file describes it; a test walks the running thing with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from memoria.admin.api import engines, feed
from memoria.admin.api import reload as reloading
from memoria.admin.api.authorizer import ACCESS, OWNER, Authorizer, Rights
from memoria.admin.api.feed import Feed
from memoria.admin.api.reload import Reload
from memoria.admin.api.replies import on_http_error, on_rejection, response
from memoria.admin.api.streams import Streams
from memoria.admin.status.collect import Collector
from memoria.admin.telemetry import requests
from memoria.admin.telemetry.requests import Requests
from memoria.proxy.errors import Rejection
from memoria.proxy.routing.unknown import unknown_route
from memoria.supervisor.supervisor import Supervisor

DESCRIPTION = Path(__file__).with_name("openapi.json")
PREFIX = b"/admin/"


def admin_app(
    supervisor: Supervisor, collector: Collector, stream: Feed, done: Requests, reload: Reload
) -> ASGIApp:
    """Every scope must say in `asked_by` who asks; `rights` tells what they may, where that is not all."""

    async def status(_: Request) -> JSONResponse:
        return JSONResponse((await collector.status(hurry=True)).to_json())

    async def access(request: Request) -> JSONResponse:
        rights: Callable[[], Rights] = request.scope.get("rights", lambda: OWNER)
        return JSONResponse(rights().to_json())

    async def description(_: Request) -> Response:
        return Response(DESCRIPTION.read_bytes(), media_type="application/json")

    streams = Streams()
    routes: list[BaseRoute] = [
        Route("/status", status, methods=["GET"]),
        Route(ACCESS, access, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
        *feed.routes(stream, streams),
        *engines.routes(supervisor, stream, streams),
        *requests.routes(done),
        *reloading.routes(reload),
    ]
    handlers = {Rejection: on_rejection, HTTPException: on_http_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.default = unknown_route
    app.router.redirect_slashes = False
    return app


def behind(door: Authorizer, app: ASGIApp) -> ASGIApp:
    """`app` for who comes over HTTP, below `PREFIX`."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix("/admin")
        try:
            asked_by = door.enter(scope, path)
        except Rejection as rejection:
            await response(rejection.answer)(scope, receive, send)
            return
        asking = {"asked_by": asked_by, "rights": partial(door.rights, scope)}
        inside = {**scope, "path": path, "raw_path": path.encode(), **asking}
        await app(inside, receive, send)

    return guarded
