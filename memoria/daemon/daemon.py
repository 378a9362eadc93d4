"""The daemon, composed: the only file that knows everybody.

runtime directory -> preflight -> sockets -> supervisor + proxy + admin -> serve -> drain -> stop
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence

from memoria.admin.status.collect import Collector
from memoria.admin.status.history import History
from memoria.admin.telemetry.metrics import Metrics
from memoria.admin.telemetry.rates import Rates
from memoria.admin.telemetry.requests import RequestLog, Requests
from memoria.admin.telemetry.tracing import open_tracing
from memoria.config.model import Config
from memoria.daemon import listeners as listen
from memoria.daemon.engine_router import EngineRouter
from memoria.daemon.front import Front
from memoria.daemon.handover import Handover
from memoria.daemon.own_app import OwnApp
from memoria.daemon.reload import Reloaded, Reloader
from memoria.daemon.server import Server
from memoria.daemon.systemd import Notifier
from memoria.daemon.terminal import Terminal
from memoria.engine.events import Journal
from memoria.engine.lifecycle import State
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight
from memoria.proxy.access.keys import Keys
from memoria.proxy.admission.admission import Admission
from memoria.proxy.admission.guarding import Guarding
from memoria.proxy.exchange.record import RequestRecord
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm.passenger import PLUGIN_DIR

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Daemon:
    """Runs from `run` until a signal asks it to end. `journal` and `supervisor` are there for the screen."""

    def __init__(
        self,
        checked: Preflight,
        reader: DeviceReader,
        runtime: RuntimeDir,
        environ: Mapping[str, str],
        given: Sequence[socket.socket] = (),
    ) -> None:
        """Takes every socket but those `given`; the caller holds `runtime`. Raises `MemoriaError`, leaving
        nothing behind."""
        self.config = config = checked.config
        self.journal = Journal()
        install, plan = checked.complete()
        self._runtime = runtime
        self._tracing = open_tracing(environ)
        self.supervisor = Supervisor(
            config,
            plan=plan,
            install=install,
            reader=reader,
            runtime=runtime,
            journal=self.journal,
            environ=environ,
            plugin_dir=PLUGIN_DIR,
        )
        self.supervisor.try_logs()
        self._notifier = Notifier(environ)
        self._rates = Rates()
        form = config.logging.requests
        self._requests = Requests(None if form == "none" else RequestLog(config.logging, form))
        router = EngineRouter(self.supervisor, config)
        admission = Admission(router, {e.name: e.max_requests for e in config.engines}, config.hold)
        guarding = Guarding(config, config.guard, admission) if config.guard else None
        self.collector = Collector(self.supervisor, admission, guarding, self._rates, self.url)
        self._history = History()
        self._metrics = Metrics(self.supervisor, self.collector, self._requests)
        keys = Keys.of(config.access)
        self._app = OwnApp(
            config,
            keys,
            self.supervisor,
            self.collector,
            history=self._history,
            metrics=self._metrics,
            requests=self._requests,
            reload=self._reload,
            admin_socket=runtime.admin_socket,
        )
        self._front = front = Front(
            config,
            keys,
            self.supervisor,
            router,
            admission=admission,
            app=self._app,
            guarding=guarding,
            on_done=self._on_done,
            answered=self._metrics.requests.answered,
        )
        self._listeners = listen.Listeners(config, given)
        self._admin = listen.bind_admin(runtime.admin_socket)
        self._server = Server(self._app, front.protocol, [*self._listeners.sockets, self._admin])
        self._server.set_drain(config.timeouts.drain)
        self._reloader: Reloader = Reloader(
            config,
            supervisor=self.supervisor,
            front=front,
            router=router,
            admission=admission,
            listeners=self._listeners,
            server=self._server,
            reader=reader,
            environ=environ,
            journal=self.journal,
            on_adopted=self._adopted,
        )
        self._handover = Handover(runtime.handover_socket, lambda: self._listeners.sockets, self._give_way)
        self._terminal = Terminal()
        self._reloading: asyncio.Future[None] | None = None
        self._stops = 0
        self._asked_to_stop = asyncio.Event()

    @property
    def url(self) -> str:
        host = self.config.listen.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{self.config.listen.port}"

    async def run(self) -> None:
        """Serves until asked to stop, then drains, stops the engines and gives everything back."""
        for pid in self._runtime.killed:
            self.journal.add("memoria", "killed a leftover", f"pid {pid}, of a daemon that was killed")
        self.journal.add("memoria", "listening", self.url)
        self.supervisor.listen(lambda _: self._tell_systemd())
        with self._signals():
            serving = asyncio.create_task(self._server.serve(), name="http server")
            beside = asyncio.create_task(self._front.run(), name="front")
            handing = asyncio.create_task(self._handover.run(), name="handover")
            sampling = asyncio.create_task(self._history.run(self.collector), name="history")
            beating = asyncio.create_task(self._heartbeat(), name="watchdog")
            stopping = asyncio.create_task(self._asked_to_stop.wait(), name="stop")
            try:
                await self.supervisor.open()
                self._notifier.ready()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not self._stops:
                    self.journal.add("memoria", "the HTTP server has ended by itself", level=logging.ERROR)
            finally:
                self._notifier.stopping()
                self._reloader.cancel()
                self._front.refuse_waiting()
                await self.supervisor.close()
                self._app.end_streams()
                self._server.end()
                await asyncio.gather(serving, return_exceptions=True)
                self._front.close()
                self._requests.close()
                if self._tracing is not None:
                    await self._tracing.close()
                for task in (stopping, beating, sampling, beside, handing):
                    task.cancel()
                self._listeners.close()
                self._admin.close()
                self._handover.close()
            if not self._stops:  # a service manager starts what has failed again
                raise serving.exception() or RuntimeError("the HTTP server has ended by itself")

    def stop(self) -> None:
        """The first call drains, the second kills."""
        self._stops += 1
        if self._stops == 1:
            self.journal.add("memoria", "stopping", "requests in flight may finish")
            self._asked_to_stop.set()
        else:
            self.journal.add("memoria", "stopping now", "")
            self.supervisor.hurry()

    def _on_done(self, record: RequestRecord) -> None:
        self._rates.add_request(record)
        self._metrics.requests.count_request(record)
        self._requests.add_request(record)
        if self._tracing is not None:
            self._tracing.add_span(record)

    def _adopted(self, config: Config, guarding: Guarding | None) -> None:
        self.config = config
        self.collector.adopt(guarding, self.url)

    async def _reload(self, *, dry_run: bool) -> Reloaded:
        return await self._reloader.reload(dry_run=dry_run)

    def _give_way(self) -> None:
        """Another daemon has the sockets: from now on connections wait for it."""
        self.journal.add("memoria", "handed over", "another daemon takes over")
        for listener in self._listeners.sockets:
            self._server.ignore(listener)
        if not self._stops:  # a third daemon that asks while this one drains is no reason to hurry
            self.stop()

    def _hang_up(self) -> None:
        """SIGHUP: a person asks for a reload, or the terminal that memoria was started in has closed."""
        if self._terminal.is_gone():
            self._terminal.let_go()
            self.stop()
        else:
            self._reloading = asyncio.ensure_future(self._reloader.on_signal())

    def _tell_systemd(self) -> None:
        snapshots = self.supervisor.snapshots()
        ready = sum(snapshot.state is State.READY for snapshot in snapshots)
        busy = [
            f"{s.name} {s.phase.value if s.phase else s.state.value}"
            for s in snapshots
            if s.state is not State.READY
        ]
        self._notifier.status(
            f"{ready} of {len(snapshots)} engines ready" + (f"; {', '.join(busy)}" if busy else "")
        )

    async def _heartbeat(self) -> None:
        """From the loop that supervises, so that a blocked loop is noticed."""
        interval = self._notifier.watchdog_interval
        while interval:
            self._notifier.alive()
            await asyncio.sleep(interval)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in (*STOP_SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)
