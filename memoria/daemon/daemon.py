"""The daemon, composed: the only module that knows every part.

runtime directory -> preflight -> generation -> supervisor + gateway -> sockets -> serve -> drain -> stop
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence

from memoria.admin.api.openapi import Reloaded
from memoria.admin.status.collect import Collector
from memoria.config.model import Config
from memoria.daemon import listeners as listen
from memoria.daemon.gateway import Gateway
from memoria.daemon.generation import build_generation, read_files
from memoria.daemon.handover import Handover
from memoria.daemon.reload import Reloader
from memoria.daemon.server import Server
from memoria.daemon.signals import handle_signals
from memoria.daemon.systemd import Notifier
from memoria.daemon.tls import ServerContext
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import State
from memoria.gpu.device import DeviceReader
from memoria.preflight.preflight import Preflight
from memoria.proxy.downstream.connection import CONNECTIONS
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.supervisor import Supervisor
from memoria.vllm.passenger import PLUGIN_DIR

IN_HANDSHAKE = 1000  # most connections beyond those that are open


class Daemon:
    """Runs from `run` until a signal ends it. `journal`, `supervisor` and `collector` are for the screen."""

    def __init__(
        self,
        checked: Preflight,
        reader: DeviceReader,
        runtime: RuntimeDir,
        environ: Mapping[str, str],
        given: Sequence[socket.socket] = (),
    ) -> None:
        """Binds every socket except those `given`; the caller has locked `runtime`. Raises `MemoriaError`,
        leaving nothing behind."""
        keys, certificate = read_files(checked.config)
        generation = build_generation(checked.deployment(), keys, certificate)
        self.journal = Journal()
        self._runtime = runtime
        self._notifier = Notifier(environ)
        self.supervisor = Supervisor(
            generation.deployment,
            reader=reader,
            runtime=runtime,
            journal=self.journal,
            environ=environ,
            plugin_dir=PLUGIN_DIR,
        )
        self.supervisor.try_logs()
        self._gateway = Gateway(
            generation,
            self.supervisor,
            reload=self._reload,
            admin_socket=runtime.admin_socket,
            environ=environ,
        )
        self._listeners = listen.Listeners(generation.config, given)
        self._admin = listen.bind_admin(runtime.admin_socket)
        tls = ServerContext.make(certificate, most=CONNECTIONS + IN_HANDSHAKE)
        sockets = [*self._listeners.sockets, self._admin]
        self._server = Server(self._gateway, self._gateway.protocol, sockets, tls)
        self._reloader: Reloader = Reloader(
            self._gateway,
            self.supervisor,
            listeners=self._listeners,
            server=self._server,
            tls=tls,
            reader=reader,
            environ=environ,
            journal=self.journal,
        )
        self._handover = Handover(runtime.handover_socket, lambda: self._listeners.sockets, self._give_way)
        self._stops = 0
        self._stopping = asyncio.Event()

    @property
    def config(self) -> Config:
        return self._gateway.generation.config

    @property
    def url(self) -> str:
        return self._gateway.generation.url

    @property
    def collector(self) -> Collector:
        return self._gateway.collector

    async def run(self) -> None:
        """Serves until `stop`, then drains, stops the engines and releases everything."""
        for pid in self._runtime.killed:
            self.journal.add_event(EventKind.LEFTOVER_KILLED, "memoria", pid=pid)
        self.journal.add_event(EventKind.LISTENING, "memoria", self.url)
        self.supervisor.listen(lambda _: self._report_to_systemd())
        with handle_signals(stop=self.stop, reload=self._reloader.on_signal):
            serving = asyncio.create_task(self._server.serve(), name="http server")
            beside = [
                asyncio.create_task(self._gateway.run(), name="gateway"),
                asyncio.create_task(self._handover.run(), name="handover"),
                asyncio.create_task(self._heartbeat(), name="watchdog"),
                stopping := asyncio.create_task(self._stopping.wait(), name="stop"),
            ]
            try:
                await self.supervisor.open()
                self._notifier.ready()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not self._stops:
                    self.journal.add_event(EventKind.SERVER_ENDED, "memoria")
            finally:
                self._notifier.stopping()
                self._reloader.cancel()
                self._gateway.refuse_waiting()
                await self.supervisor.close()
                self._gateway.end_streams()
                self._server.end(drain=self.config.timeouts.drain)
                await asyncio.gather(serving, return_exceptions=True)
                await self._gateway.close()
                for task in beside:
                    task.cancel()
                self._listeners.close()
                self._admin.close()
                self._handover.close()
            if not self._stops:  # a service manager restarts what has failed
                raise serving.exception() or RuntimeError("the HTTP server has ended by itself")

    def stop(self) -> None:
        """The first call drains, the second kills."""
        self._stops += 1
        if self._stops == 1:
            self.journal.add_event(EventKind.STOPPING, "memoria")
            self._stopping.set()
        else:
            self.journal.add_event(EventKind.STOPPING_NOW, "memoria")
            self.supervisor.hurry()

    async def _reload(self, *, dry_run: bool) -> Reloaded:
        return await self._reloader.reload(dry_run=dry_run)

    def _give_way(self) -> None:
        """Another daemon has the sockets: new connections wait for it."""
        self.journal.add_event(EventKind.HANDED_OVER, "memoria")
        for listener in self._listeners.sockets:
            self._server.ignore(listener)
        if not self._stops:  # a third daemon that takes over during the drain must not kill
            self.stop()

    def _report_to_systemd(self) -> None:
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
        """Runs on the loop that supervises, so that systemd notices a blocked loop."""
        interval = self._notifier.watchdog_interval
        while interval:
            self._notifier.alive()
            await asyncio.sleep(interval)
