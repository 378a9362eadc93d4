"""The daemon, composed: the only file that knows everybody.

runtime directory -> preflight -> sockets -> supervisor + proxy + admin -> serve -> drain -> stop
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping

import uvicorn

from memoria import listen
from memoria.admin.collect import Collector
from memoria.admin.metrics import Metrics
from memoria.admin.rates import Rates
from memoria.admin.request_log import RequestLog
from memoria.admin.requests import Requests
from memoria.config.model import Config
from memoria.engine.journal import Journal
from memoria.engine.lifecycle import State
from memoria.front import Front
from memoria.gpu.device import DeviceReader
from memoria.proxy.admission import Admission
from memoria.proxy.exchange import Exchange
from memoria.proxy.guarding import Guarding
from memoria.routing import EngineRouter
from memoria.supervisor.notify import Notifier
from memoria.supervisor.preflight import Preflight
from memoria.supervisor.runtime import RuntimeDir
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm_plugin import PLUGIN_DIR

logger = logging.getLogger(__name__)

# SIGHUP too: a terminal that closes must not cut the requests in flight.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEEP_ALIVE = 75  # seconds an idle client connection stays open, nginx's default


class Daemon:
    """Runs from `run` until a signal asks it to end. `journal` and `supervisor` are there for the screen."""

    def __init__(
        self,
        config: Config,
        checked: Preflight,
        reader: DeviceReader,
        runtime: RuntimeDir,
        environ: Mapping[str, str],
    ) -> None:
        """Takes every socket; the caller holds `runtime`. Raises `MemoriaError`, leaving nothing behind."""
        self.config, self.journal = config, Journal()
        install, plan = checked.complete()
        self._runtime = runtime
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
        self._metrics = Metrics(self.supervisor, self.collector)
        self._front = Front(
            config,
            self.supervisor,
            self.collector,
            router,
            admission,
            guarding=guarding,
            metrics=self._metrics,
            admin_socket=runtime.admin_socket,
            requests=self._requests,
            on_done=self._on_done,
        )
        self._sockets = listen.bind_all(config)
        self._sockets.append(listen.bind_admin(runtime.admin_socket))
        self._server = _Server(
            uvicorn.Config(
                self._front.app,
                http=self._front.protocol,
                loop="uvloop",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,  # the engine's is relayed
                proxy_headers=False,  # no client is trusted to say who it is
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(config.timeouts.drain) + 1,
            )
        )
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
            sockets = listen.spread(self._sockets)
            serving = asyncio.create_task(self._server.serve(sockets), name="http server")
            beside = asyncio.create_task(self._front.run(), name="front")
            beating = asyncio.create_task(self._heartbeat(), name="watchdog")
            stopping = asyncio.create_task(self._asked_to_stop.wait(), name="stop")
            try:
                await self.supervisor.open()
                self._notifier.ready()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._notifier.stopping()
                self._front.refuse_waiting()
                await self.supervisor.close()
                self._front.end_streams()
                self._server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
                self._front.close()
                self._requests.close()
                for task in (stopping, beating, beside):
                    task.cancel()
                listen.close(self._sockets)

    def stop(self) -> None:
        """The first call drains, the second kills."""
        self._stops += 1
        if self._stops == 1:
            self.journal.add("memoria", "stopping", "requests in flight may finish")
            self._asked_to_stop.set()
        else:
            self.journal.add("memoria", "stopping now", "")
            self.supervisor.hurry()

    def _on_done(self, exchange: Exchange) -> None:
        self._rates.add(exchange)
        self._metrics.tally.add(exchange)
        self._requests.add(exchange)

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
        try:
            yield
        finally:
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """The daemon handles the signals; uvicorn's own handlers would end the proxy before the engines drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
