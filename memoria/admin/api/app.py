"""The admin API: complete on the admin socket, and behind an `Authorizer` under `/admin/` of the main
address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from memoria.admin.api import adapters, engines, feed, openapi
from memoria.admin.api.authorizer import ACCESS, OWNER, Authorizer, Rights
from memoria.admin.api.feed import Feed
from memoria.admin.api.openapi import Reloaded
from memoria.admin.api.responses import (
    Json,
    Streams,
    flag,
    on_http_error,
    on_rejection,
    response,
    unknown_route,
)
from memoria.admin.status.collect import Collector
from memoria.admin.telemetry import requests
from memoria.admin.telemetry.requests import Requests
from memoria.aio import in_daemon_thread
from memoria.errors import MemoriaError
from memoria.proxy.errors import Rejection
from memoria.supervisor.model_names import ModelNames
from memoria.supervisor.supervisor import Supervisor

PREFIX = b"/admin/"


class Reload(Protocol):
    def __call__(self, *, dry_run: bool) -> Awaitable[Reloaded]:
        """Raises `MemoriaError` where nothing has changed."""
        ...


def admin_app(
    supervisor: Supervisor,
    collector: Collector,
    stream: Feed,
    done: Requests,
    reload: Reload,
    *,
    names: ModelNames,
) -> Starlette:
    """Every scope needs `sender`, the sender in words; `rights` gives its rights, where not all."""

    async def status(_: Request) -> Json:
        return Json((await collector.status(hurry=True)).to_json())

    async def access(request: Request) -> Json:
        rights: Callable[[], Rights] = request.scope.get("rights", lambda: OWNER)
        return Json(rights())

    async def description(_: Request) -> Response:
        return Response(await in_daemon_thread(openapi.document), media_type="application/json")

    async def reload_configuration(request: Request) -> Json:
        try:
            outcome = await reload(dry_run=flag(request, "dry_run"))
        except MemoriaError as error:
            refused = openapi.Refused(exit_code=int(error.exit_code), problems=list(error.problems))
            return Json(refused, 422)
        return Json(outcome)

    streams = Streams()
    routes: list[BaseRoute] = [
        Route("/status", status, methods=["GET"]),
        Route(ACCESS, access, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
        *feed.routes(stream, streams),
        *adapters.routes(supervisor, names),
        *engines.routes(supervisor, stream, streams),
        *requests.routes(done),
        Route("/reload", reload_configuration, methods=["POST"]),
    ]
    handlers = {Rejection: on_rejection, HTTPException: on_http_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.default = unknown_route
    app.router.redirect_slashes = False
    return app


def behind(authorizer: Authorizer, app: ASGIApp) -> ASGIApp:
    """`app` below `PREFIX`, for authorized requests only."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix("/admin")
        try:
            sender = authorizer.authorize(scope, path)
        except Rejection as rejection:
            await response(rejection.answer)(scope, receive, send)
            return
        added = {"sender": sender, "rights": partial(authorizer.rights, scope)}
        await app({**scope, "path": path, "raw_path": path.encode(), **added}, receive, send)

    return guarded
