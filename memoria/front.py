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
from memoria.admin.collect import Collector
from memoria.config.model import Config, Guard
from memoria.proxy import guard
from memoria.proxy.access import access_rules
from memoria.proxy.admission import Admission
from memoria.proxy.downstream import protocol_for
from memoria.proxy.exchange import Exchange
from memoria.proxy.guard import LatencyGuard
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
        admin_socket: Path,
        on_done: Callable[[Exchange], None],
    ) -> None:
        """Raises `ConfigError` when the file of keys cannot be used."""
        self._keys = KeyRing(config.access.keys) if config.access.keys else None
        self._admission = admission
        supervisor.listen(lambda snapshot: self._admission.changed(snapshot.name))
        self._guard = _Guard(config, config.guard, self._admission) if config.guard else None
        self._pool = Pool()
        relay = Relay(
            router,
            self._pool,
            admission=self._admission,
            limits=config.limits,
            timeouts=config.timeouts,
            rules=access_rules(config, self._keys, hostname=socket.gethostname()),
            filters={e.name: e.filters for e in config.engines if e.filters.strip or e.filters.set},
            protected=self._guard.protected if self._guard else None,
            on_done=on_done,
        )
        self.protocol: type[HttpToolsProtocol] = protocol_for(relay)
        self.app = _app(supervisor, collector, str(admin_socket))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._keys is not None:
                tasks.create_task(self._keys.watch(), name="keys")
            if self._guard is not None:
                tasks.create_task(self._guard.run(), name="guard")

    def refuse_waiting(self) -> None:
        """memoria stops: what waits for an engine need not wait any longer."""
        self._admission.close()

    def close(self) -> None:
        self._pool.close()


class _Guard:
    """The latency guard at work: the neighbours are the other engines on the protected one's device."""

    def __init__(self, config: Config, wish: Guard, admission: Admission) -> None:
        device = config.engine(wish.protect).gpu
        neighbours = [e for e in config.engines if e.name != wish.protect and e.gpu == device]
        self._neighbours = [engine.name for engine in neighbours]
        self._admission = admission
        most = max((engine.max_requests for engine in neighbours), default=1)
        self._guard = LatencyGuard(wish.inter_token_ms / 1000, most)
        self.protected = Protected(wish.protect, self._guard.observe)

    async def run(self) -> None:
        while self._neighbours:
            await asyncio.sleep(guard.PERIOD)
            busiest = max(self._admission.load(name).in_flight for name in self._neighbours)
            limit = self._guard.step(busiest)
            for name in self._neighbours:
                self._admission.cap(name, limit)


def _app(supervisor: Supervisor, collector: Collector, admin_socket: str) -> ASGIApp:
    """What is not relayed: health and models for everybody, the status on the admin socket."""
    public = Starlette(routes=[*health.routes(supervisor, collector), *models.routes(supervisor)])
    public.router.default = unknown_route

    async def status(_: Request) -> JSONResponse:
        return JSONResponse((await collector.status()).to_json())

    private = Starlette(routes=[Route("/status", status, methods=["GET"])])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (private if scope["server"][0] == admin_socket else public)(scope, receive, send)

    return app
