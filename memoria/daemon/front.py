"""The HTTP front, composed: who may ask, who goes next, what is relayed and what memoria answers itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memoria.aio import in_daemon_thread
from memoria.config.model import Config
from memoria.daemon.own_app import OwnApp
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.proxy.access.keys import Keys
from memoria.proxy.access.rules import access_rules
from memoria.proxy.admission.admission import Admission
from memoria.proxy.admission.guarding import Guarding
from memoria.proxy.downstream.connection import protocol_for
from memoria.proxy.exchange.context import Policy, Progress, Protected, ProxyContext
from memoria.proxy.exchange.record import RequestRecord
from memoria.proxy.router import Router
from memoria.proxy.upstream.connection import Pool
from memoria.supervisor.supervisor import Supervisor


class Front:
    """`protocol` is what uvicorn serves; `run` is what goes on beside it until it is cancelled."""

    def __init__(
        self,
        config: Config,
        keys: Keys,
        supervisor: Supervisor,
        router: Router,
        *,
        admission: Admission,
        app: OwnApp,
        guarding: Guarding | None,
        on_done: Callable[[RequestRecord], None],
        answered: Callable[[str], int],
    ) -> None:
        self._keys, self._guarding = keys, guarding
        self._admission, self._app = admission, app
        supervisor.listen(self._on_engine)
        self._pool, self._renewed = Pool(), asyncio.Event()
        self._context = ProxyContext(
            router,
            self._pool,
            admission=self._admission,
            policy=self._policy(config),
            on_done=on_done,
        )
        supervisor.watch_flow(Progress(self._context.connections, answered).of)
        self.protocol: type[HttpToolsProtocol] = protocol_for(self._context)

    async def run(self) -> None:
        while True:
            self._renewed.clear()
            tasks = [
                asyncio.create_task(keys.watch(in_daemon_thread), name="keys") for keys in self._keys.rings
            ]
            if self._guarding is not None:
                tasks.append(asyncio.create_task(self._guarding.run(), name="guard"))
            try:
                await self._renewed.wait()
            finally:
                for task in tasks:
                    task.cancel()

    def adopt(self, config: Config, keys: Keys, guarding: Guarding | None) -> None:
        """Another configuration, for every request from now on."""
        self._keys, self._guarding = keys, guarding
        self._admission.adopt({e.name: e.max_requests for e in config.engines}, config.hold)
        self._context.replace_policy(self._policy(config))
        self._app.adopt(config, keys)
        self._renewed.set()

    def _policy(self, config: Config) -> Policy:
        guarding = self._guarding
        return Policy(
            limits=config.limits,
            timeouts=config.timeouts,
            rules=access_rules(config, self._keys, hostname=socket.gethostname()),
            filters={e.name: e.filters for e in config.engines if e.filters.strip or e.filters.set},
            protected=Protected(guarding.protects, guarding.observe) if guarding else None,
        )

    def _on_engine(self, snapshot: EngineSnapshot) -> None:
        """Called before the state's work begins: what an engine still answers when it is to stop ends here
        and not with what it would say itself when it is told."""
        if snapshot.state is State.STOPPING:
            self._context.cut(snapshot.name)
        if snapshot.state in {State.STOPPING, State.RELEASING} and snapshot.address is not None:
            self._pool.forget(snapshot.address)
        self._admission.changed(snapshot.name)

    def refuse_waiting(self) -> None:
        """memoria stops: what waits for an engine need not wait any longer."""
        self._admission.close()

    def close(self) -> None:
        self._pool.close()
