"""The HTTP front, composed: who may ask, who goes next, what is relayed and what memoria answers itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.admin import health, models
from memoria.admin import reload as reloading
from memoria.admin.collect import Collector
from memoria.admin.metrics import Metrics
from memoria.admin.reload import Reload
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
        on_done: Callable[[Exchange], None],
        reload: Reload,
    ) -> None:
        """Raises `ConfigError` when the file of keys cannot be used."""
        self._keys = open_keys(config)
        self._admission = admission
        supervisor.listen(lambda snapshot: self._admission.changed(snapshot.name))
        self._guarding = guarding
        self._pool, self._renewed = Pool(), asyncio.Event()
        self._relay = Relay(
            router,
            self._pool,
            admission=self._admission,
            limits=config.limits,
            timeouts=config.timeouts,
            on_done=on_done,
        )
        self._tell_relay(config)
        self.protocol: type[HttpToolsProtocol] = protocol_for(self._relay)
        self.app = _app(supervisor, collector, metrics, str(admin_socket), reload)

    async def run(self) -> None:
        while True:
            self._renewed.clear()
            tasks = []
            if self._keys is not None:
                tasks.append(asyncio.create_task(self._keys.watch(), name="keys"))
            if self._guarding is not None:
                tasks.append(asyncio.create_task(self._guarding.run(), name="guard"))
            try:
                await self._renewed.wait()
            finally:
                for task in tasks:
                    task.cancel()

    def adopt(self, config: Config, keys: KeyRing | None, guarding: Guarding | None) -> None:
        """Another configuration, for every request from now on. `keys` were made by `open_keys`."""
        self._keys, self._guarding = keys, guarding
        self._admission.adopt({e.name: e.max_requests for e in config.engines}, config.hold)
        self._tell_relay(config)
        self._renewed.set()

    def _tell_relay(self, config: Config) -> None:
        guarding = self._guarding
        self._relay.adopt(
            limits=config.limits,
            timeouts=config.timeouts,
            rules=access_rules(config, self._keys, hostname=socket.gethostname()),
            filters={e.name: e.filters for e in config.engines if e.filters.strip or e.filters.set},
            protected=Protected(guarding.protects, guarding.observe) if guarding else None,
        )

    def refuse_waiting(self) -> None:
        """memoria stops: what waits for an engine need not wait any longer."""
        self._admission.close()

    def close(self) -> None:
        self._pool.close()


def open_keys(config: Config) -> KeyRing | None:
    """Raises `ConfigError` when the file of keys cannot be used."""
    return KeyRing(config.access.keys) if config.access.keys else None


def _app(
    supervisor: Supervisor, collector: Collector, metrics: Metrics, admin_socket: str, reload: Reload
) -> ASGIApp:
    """What is not relayed: health, models and metrics for everybody, the status on the admin socket."""
    public = Starlette(
        routes=[*health.routes(supervisor, collector), *models.routes(supervisor), *metrics.routes()]
    )
    public.router.default = unknown_route

    async def status(_: Request) -> JSONResponse:
        return JSONResponse((await collector.status()).to_json())

    private = Starlette(routes=[Route("/status", status, methods=["GET"]), *reloading.routes(reload)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (private if scope["server"][0] == admin_socket else public)(scope, receive, send)

    return app
