"""CUDA MPS, managed: one control daemon of memoria's own, under which the engines' kernels share the GPUs.

The control daemon starts a server when the first engine touches its device, and again after one has died; a
fault in one engine ends the server, and with it every engine's context. A client that finds no control daemon
runs without MPS and without its limits, so no engine passes the gate while there is none.
(https://docs.nvidia.com/deploy/mps/)
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from memoria.aio import in_daemon_thread
from memoria.config.model import Restart
from memoria.engine.events import EventKind, Journal
from memoria.engine.process.process import EngineProcess
from memoria.engine.process.table import ProcessTable
from memoria.errors import MemoriaError, Problem, UnavailableError
from memoria.preflight.mps import find_control
from memoria.supervisor.runtime_dir import RuntimeDir

logger = logging.getLogger(__name__)

NAME = "mps"
BETWEEN_LOOKS = 0.05  # seconds
_INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "USER")
_SHOWN_LINES = 5


class Mps:
    """`serves`: whether an engine does. `on_lost` is called when the engines' contexts are gone, and engines
    may start again. `patience`: seconds for the control daemon to come up, and to end. `interval`: between
    two looks at its servers."""

    def __init__(
        self,
        runtime: RuntimeDir,
        logs: Path,
        environ: Mapping[str, str],
        *,
        process_table: ProcessTable,
        journal: Journal,
        restart: Restart,
        serves: Callable[[], bool],
        on_lost: Callable[[], None],
        patience: float = 10.0,
        interval: float = 2.0,
    ) -> None:
        self._runtime, self._logs, self._environ = runtime, logs, environ
        self._process_table, self._journal = process_table, journal
        self._serves, self._on_lost = serves, on_lost
        self._restart, self._patience, self._interval = restart, patience, interval
        self._process: EngineProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self.start_id: str | None = None
        self.is_up = False

    @property
    def pipes(self) -> Path:
        """Where clients find the control daemon. Its sockets' paths must be short."""
        return self._runtime.path / NAME

    @property
    def pids(self) -> set[int]:
        """The control daemon and its servers, as last read."""
        if self.start_id is None:
            return set()
        own = set() if self._process is None else {self._process.pid}
        return own | set(self._process_table.latest.get(self.start_id, ()))

    async def open(self) -> None:
        """Raises `UnavailableError` if the control daemon does not come up."""
        await self._start()
        self._watching = asyncio.create_task(self._watch(), name=NAME)

    async def close(self) -> None:
        """Call once no engine is left."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if (process := self._process) is not None and process.is_running:
            await in_daemon_thread(self._quit)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await process.exited()
        await self._clear()

    async def _start(self) -> None:
        program = find_control(self._environ)
        shutil.rmtree(self.pipes, ignore_errors=True)
        start_id = self.start_id = uuid.uuid4().hex[:12]
        self._runtime.state.intend(start_id, NAME)
        try:
            for folder in (self.pipes, self._logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                process = EngineProcess.spawn(
                    (program, "-f"),
                    self._variables
                    | {"MEMORIA_GATE": str(self._runtime.gate_socket), "MEMORIA_START": start_id},
                    start_id=start_id,
                    log=log,
                    process_table=self._process_table,
                )
            finally:
                os.close(log)
        except OSError as error:
            self._runtime.state.ended(start_id)
            raise UnavailableError(f"MPS cannot be started: {error}") from None
        self._process = process
        self._runtime.state.spawned(start_id, process.pid)
        deadline = time.monotonic() + self._patience
        while not (self.pipes / "control").exists():  # the kernel has no event that needs no descriptor
            if not process.is_running or time.monotonic() > deadline:
                await self._clear()
                raise UnavailableError(
                    Problem(
                        "the MPS control daemon did not come up",
                        self._last_lines(),
                        f"see {self._logs}; does `nvidia-cuda-mps-control -f` work by hand?",
                    )
                )
            await asyncio.sleep(BETWEEN_LOOKS)
        self.is_up = True
        self._journal.add_event(EventKind.MPS_STARTED, "memoria", pid=process.pid)

    async def _watch(self) -> None:
        servers: set[int] = set()
        expects = True  # whether engines that serve have a server
        while True:
            process = self._process
            assert process is not None
            exited = asyncio.ensure_future(process.exited())
            await asyncio.wait({exited}, timeout=self._interval)
            if exited.done():
                self.is_up = False
                self._journal.add_event(EventKind.MPS_ENDED, "memoria", str(exited.result()))
                await self._clear()
                await self._start_again()
                servers = set()
                self._on_lost()
                continue
            exited.cancel()
            serves = self._serves()  # before the look: an engine may become ready during it
            now = await self._servers(process)
            if servers - now or (serves and not now and expects):
                pids = ", ".join(map(str, sorted(servers - now)))
                self._journal.add_event(EventKind.MPS_SERVER_ENDED, "memoria", pids and f"pid {pids}")
                expects = bool(servers)  # it may have come and gone unseen, once; else engines run without
                self._on_lost()
            servers = now
            expects = expects or bool(now)

    async def _servers(self, control: EngineProcess) -> set[int]:
        """By their marks, as not every kernel lists a process's children."""
        with suppress(OSError):
            await self._process_table.look()
        return self.pids - {control.pid}

    async def _start_again(self) -> None:
        delay = self._restart.initial
        while True:
            await asyncio.sleep(delay)
            try:
                return await self._start()
            except MemoriaError as error:
                logger.warning("%s", error.problems[0].line)
            delay = min(2 * delay, self._restart.cap)

    async def _clear(self) -> None:
        """Ends what is left of the control daemon and its servers."""
        self.is_up = False
        if self._process is None or self.start_id is None:
            return
        deadline = time.monotonic() + self._patience
        with suppress(OSError):
            while (await self._process.clear()).left and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS)
        self._runtime.state.ended(self.start_id)
        self._process = None
        shutil.rmtree(self.pipes, ignore_errors=True)

    def _quit(self) -> None:
        with suppress(OSError, subprocess.SubprocessError, MemoriaError):
            subprocess.run(
                [find_control(self._environ)],
                input=b"quit\n",
                env=self._variables,
                capture_output=True,
                timeout=self._patience,
                check=False,
            )

    @property
    def _variables(self) -> dict[str, str]:
        """Without CUDA_VISIBLE_DEVICES: a server would count clients' devices within it."""
        kept = {name: self._environ[name] for name in _INHERITED if name in self._environ}
        return kept | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipes),
            "CUDA_MPS_LOG_DIRECTORY": str(self._logs),
        }

    @property
    def _output(self) -> Path:
        return self._logs / "output.log"

    def _last_lines(self) -> tuple[str, ...]:
        found: list[str] = []
        for file in (self._output, self._logs / "control.log"):
            with suppress(OSError):
                found += file.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        return tuple("".join(c if c.isprintable() else "?" for c in line) for line in found)
