"""The HTTP front, composed: who may ask, who goes next, what is relayed and what memoria answers itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.admin import health, models, page
from memoria.admin.api import PREFIX, admin_app, behind
from memoria.admin.collect import Collector
from memoria.admin.door import Door
from memoria.admin.feed import Feed
from memoria.admin.metrics import Metrics
from memoria.admin.requests import Requests
from memoria.config.model import Config
from memoria.proxy.access import access_rules
from memoria.proxy.admission import Admission
from memoria.proxy.downstream import protocol_for
from memoria.proxy.exchange import Exchange
from memoria.proxy.guarding import Guarding
from memoria.proxy.keys import KeyRing
from memoria.proxy.pool import Pool
from memoria.proxy.relay import Protected, Relay
from memoria.proxy.router import Router
from memoria.proxy.unknown import unknown_route
from memoria.supervisor.supervisor import Supervisor


class Front:
    """`app` and `protocol` are what uvicorn serves; `run` is what goes on beside it until it is cancelled."""

    def __init__(
        self,
        config: Config,
        supervisor: Supervisor,
        collector: Collector,
        router: Router,
        admission: Admission,
        *,
        guarding: Guarding | None,
        metrics: Metrics,
        admin_socket: Path,
        requests: Requests,
        on_done: Callable[[Exchange], None],
    ) -> None:
        """Raises `ConfigError` when the file of keys cannot be used."""
        self._keys = KeyRing(config.access.keys) if config.access.keys else None
        self._admin_keys = KeyRing(config.access.admin_keys) if config.access.admin_keys else None
        self._admission = admission
        supervisor.listen(lambda snapshot: self._admission.changed(snapshot.name))
        self._guarding = guarding
        self._pool = Pool()
        relay = Relay(
            router,
            self._pool,
            admission=self._admission,
            limits=config.limits,
            timeouts=config.timeouts,
            rules=access_rules(
                config, self._keys, hostname=socket.gethostname(), admin_keys=self._admin_keys
            ),
            filters={e.name: e.filters for e in config.engines if e.filters.strip or e.filters.set},
            protected=Protected(guarding.protects, guarding.observe) if guarding else None,
            on_done=on_done,
        )
        self.protocol: type[HttpToolsProtocol] = protocol_for(relay)
        self._feed = Feed(supervisor, supervisor.journal, collector)
        admin = admin_app(supervisor, collector, self._feed, requests)
        guarded = behind(Door(config, self._keys, self._admin_keys), admin)
        everywhere = [*health.routes(supervisor, collector), *models.routes(supervisor), *metrics.routes()]
        public, main = _public(everywhere), _public([*everywhere, *page.routes()])
        self.app = _app(public, main, admin, guarded, port=config.listen.port, admin_socket=str(admin_socket))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for keys in (self._keys, self._admin_keys):
                if keys is not None:
                    tasks.create_task(keys.watch(), name="keys")
            if self._guarding is not None:
                tasks.create_task(self._guarding.run(), name="guard")

    def refuse_waiting(self) -> None:
        """memoria stops: what waits for an engine need not wait any longer."""
        self._admission.close()

    def end_streams(self) -> None:
        """What is followed without an end would keep the server from ending."""
        self._feed.close()

    def close(self) -> None:
        self._pool.close()


def _public(routes: list[Route]) -> ASGIApp:
    """What is not relayed."""
    app = Starlette(routes=routes)
    app.router.default = unknown_route
    return app


def _app(
    public: ASGIApp, main: ASGIApp, admin: ASGIApp, guarded: ASGIApp, *, port: int, admin_socket: str
) -> ASGIApp:
    """The main address has the page and the admin API, too; an engine's own port has neither."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        host, own_port = scope["server"]
        if host == admin_socket:
            await admin({**scope, "asked_by": "over the admin socket"}, receive, send)
        elif own_port != port:
            await public(scope, receive, send)
        elif scope["raw_path"].startswith(PREFIX):
            await guarded(scope, receive, send)
        else:
            await main(scope, receive, send)

    return app
