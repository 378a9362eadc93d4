"""The HTTP side of the daemon: requests for engines are relayed, memoria's own routes are answered here.

Health, models and metrics are answered on every port, the page and the admin API on the main address, the
admin API alone on the admin socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.admin.api import health, models, page
from memoria.admin.api.app import PREFIX, Reload, admin_app, behind
from memoria.admin.api.feed import Feed
from memoria.admin.api.responses import unknown_route
from memoria.admin.status.collect import Collector
from memoria.admin.status.history import History
from memoria.admin.telemetry.metrics import Metrics
from memoria.admin.telemetry.rates import Rates
from memoria.admin.telemetry.requests import RequestLog, Requests
from memoria.admin.telemetry.tracing import open_tracing
from memoria.daemon.engine_router import EngineRouter
from memoria.daemon.generation import Generation
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.proxy.admission.admission import Admission
from memoria.proxy.downstream.connection import protocol_for
from memoria.proxy.exchange.context import Progress, ProxyContext
from memoria.proxy.exchange.record import RequestRecord
from memoria.proxy.upstream import Pool
from memoria.supervisor.model_names import ModelNames
from memoria.supervisor.supervisor import Supervisor


class Gateway:
    """Holds the `generation` in force; everything over HTTP reads it here. An ASGI application for memoria's
    own routes; `protocol` is the uvicorn protocol that relays the rest. `run` is the work beside requests.
    """

    def __init__(
        self,
        generation: Generation,
        supervisor: Supervisor,
        *,
        reload: Reload,
        admin_socket: Path,
        environ: Mapping[str, str],
    ) -> None:
        """Raises `MemoriaError` where the request log or tracing cannot be opened."""
        # loads its backend, which takes 0.1 s: all would wait for that at the first stream of events
        anyio.get_cancelled_exc_class()
        self.generation, self._switched = generation, asyncio.Event()
        self._admin_socket = str(admin_socket)
        config = generation.config

        self._names = ModelNames(supervisor)
        router = EngineRouter(supervisor, lambda: self.generation.candidates, self._names)
        self._admission = Admission(router, generation.max_requests, config.hold)
        self._tracing = open_tracing(environ)
        self._rates, self._history = Rates(), History()
        form = config.logging.requests
        self._requests = Requests(None if form == "none" else RequestLog(config.logging, form))
        self.collector = Collector(
            supervisor,
            self._admission,
            self._rates,
            guarding=lambda: self.generation.guarding,
            url=lambda: self.generation.url,
            certificate=lambda: self.generation.certificate_status,
        )
        metrics = Metrics(supervisor, self.collector, self._requests)
        self._request_metrics, self._loop_lag = metrics.requests, metrics.loop_lag

        self._pool = Pool()
        self._context = ProxyContext(
            router,
            self._pool,
            admission=self._admission,
            policy=generation.policy,
            on_done=self._on_done,
        )
        self.protocol: type[HttpToolsProtocol] = protocol_for(self._context)
        supervisor.watch_flow(Progress(self._context.connections, self._request_metrics.answered).of)
        supervisor.listen(self._on_engine)

        self._feed = Feed(supervisor.journal, self.collector.status, self._history)
        supervisor.listen(lambda _: self._feed.changed.notify())
        self._admin = admin_app(
            supervisor, self.collector, self._feed, self._requests, reload, names=self._names
        )
        everywhere = [
            *health.routes(supervisor, self.collector),
            *models.routes(supervisor),
            *metrics.routes(),
        ]
        self._everywhere, self._main = _app(everywhere), _app([*everywhere, *page.routes()])

    def switch_to(self, generation: Generation) -> None:
        """Puts another generation in force, for every request from now on; connections stay."""
        self.generation = generation
        self._admission.adopt(generation.max_requests, generation.config.hold)
        self._context.replace_policy(generation.policy)
        self._switched.set()

    async def run(self) -> None:
        """Rereads key files, guards latency, watches the event loop and samples the history, until
        cancelled."""
        sampling = asyncio.create_task(self._history.run(self.collector), name="history")
        try:
            with self._loop_lag.watching():
                await self._follow_generations()
        finally:
            sampling.cancel()

    async def _follow_generations(self) -> None:
        while True:
            self._switched.clear()
            generation = self.generation
            tasks = [asyncio.create_task(keys.watch(), name="keys") for keys in generation.keys.rings]
            if generation.guarding is not None:
                tasks.append(asyncio.create_task(generation.guarding.run(self._admission), name="guard"))
            try:
                await self._switched.wait()
            finally:
                for task in tasks:
                    task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host, port = scope["server"]
        if host == self._admin_socket:
            await self._admin({**scope, "sender": "over the admin socket"}, receive, send)
        elif port != self.generation.config.listen.port:
            await self._everywhere(scope, receive, send)
        elif scope["raw_path"].startswith(PREFIX):
            await behind(self.generation.authorizer, self._admin)(scope, receive, send)
        else:
            await self._main(scope, receive, send)

    def refuse_waiting(self) -> None:
        """Refuses the requests that wait for an engine, now and from now on: memoria stops."""
        self._admission.close()

    def end_streams(self) -> None:
        """Ends the event streams, which would keep the server from ending."""
        self._feed.close()

    async def close(self) -> None:
        self._pool.close()
        self._requests.close()
        if self._tracing is not None:
            await self._tracing.close()

    def _on_engine(self, snapshot: EngineSnapshot) -> None:
        """Called before the state's work begins: responses of an engine that is to stop are cut here, with
        the reason, and not by the engine itself, which would end them as if they were complete."""
        if snapshot.state is State.STOPPING:
            self._context.cut(snapshot.name)
        if FACTS[snapshot.state].frees_memory and snapshot.address is not None:
            self._pool.forget(snapshot.address)
        self._names.on_engine(snapshot)
        self._admission.changed(snapshot.name)

    def _on_done(self, record: RequestRecord) -> None:
        self._rates.add_request(record)
        self._request_metrics.count_request(record)
        self._requests.add_request(record)
        if self._tracing is not None:
            self._tracing.add_span(record)


def _app(routes: list[Route]) -> ASGIApp:
    app = Starlette(routes=routes)
    app.router.default = unknown_route
    return app
