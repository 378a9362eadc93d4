"""What memoria answers itself: health, models and metrics everywhere, the page and the admin API on the main
address, the admin API alone on the admin socket."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from memoria.admin.api import health, models, page
from memoria.admin.api.app import PREFIX, Reload, admin_app, behind
from memoria.admin.api.authorizer import Authorizer
from memoria.admin.api.feed import Feed
from memoria.admin.status.collect import Collector
from memoria.admin.status.history import History
from memoria.admin.telemetry.metrics import Metrics
from memoria.admin.telemetry.requests import Requests
from memoria.config.model import Config
from memoria.proxy.access.keys import Keys
from memoria.proxy.routing.unknown import unknown_route
from memoria.supervisor.supervisor import Supervisor


class OwnApp:
    """An ASGI application."""

    def __init__(
        self,
        config: Config,
        keys: Keys,
        supervisor: Supervisor,
        collector: Collector,
        *,
        history: History,
        metrics: Metrics,
        requests: Requests,
        reload: Reload,
        admin_socket: Path,
    ) -> None:
        self._admin_socket = str(admin_socket)
        self._feed = Feed(supervisor.journal, collector.status, history)
        supervisor.listen(lambda _: self._feed.changed.notify())
        self._admin = admin_app(supervisor, collector, self._feed, requests, reload)
        everywhere = [*health.routes(supervisor, collector), *models.routes(supervisor), *metrics.routes()]
        self._everywhere, self._main = _app(everywhere), _app([*everywhere, *page.routes()])
        self.adopt(config, keys)

    def adopt(self, config: Config, keys: Keys) -> None:
        self._port = config.listen.port
        self._guarded = behind(Authorizer(config, keys.clients, keys.admins), self._admin)

    def end_streams(self) -> None:
        """What is followed without an end would keep the server from ending."""
        self._feed.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host, port = scope["server"]
        if host == self._admin_socket:
            await self._admin({**scope, "asked_by": "over the admin socket"}, receive, send)
        elif port != self._port:
            await self._everywhere(scope, receive, send)
        elif scope["raw_path"].startswith(PREFIX):
            await self._guarded(scope, receive, send)
        else:
            await self._main(scope, receive, send)


def _app(routes: list[Route]) -> ASGIApp:
    app = Starlette(routes=routes)
    app.router.default = unknown_route
    return app
