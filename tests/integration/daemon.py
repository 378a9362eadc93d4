"""memoria as a person meets it: its real command line, on a box with a stub vLLM and stub GPUs.

    box.configure()                        # memoria.yaml: an embedding and a generation engine
    box.vllm.set_faults("generation", fail_at="loading")
    daemon = box.start()                   # `memoria run`, a process of its own
    daemon.until_ready()
    daemon.told("generation", "backoff")   # waits for the journal's record
    assert box.call("status").returncode == 1
    assert daemon.stop() == 0

The fixture `box` is in conftest.py; what is left of a box is killed after the test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memoria.admin.status.status import EngineStatus, Status
from memoria.cli.client import request as ask_admin
from memoria.engine.process.marker import marked
from memoria.text import GIB
from tests.integration.http_client import Answer, ask
from tests.ports import free_ports
from tests.stub_engine import StubVllm
from tests.stub_nvml import NvmlStub, StubGpu, StubProcess

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds; a test that waits in vain ends by it

# Small delays, so that what takes minutes in life is seen in seconds.
CONFIG = """\
listen: 127.0.0.1:{main}
vllm: ./vllm
timeouts: {{start: 20, drain: 10, stop: 1, release: 20}}
restart: {{initial: 0.1, cap: 0.2, attempts: 2}}
log: {{dir: logs, format: "${{LOG_FORMAT:-json}}"}}
{top}
engines:
  embedding:
    model: ./models/embedder
    runner: pooling
    gpu_memory_utilization: 0.30
    port: {embedding}
  generation:
    model: ./models/writer
    gpu_memory_utilization: 0.60
    port: {generation}
"""


@dataclass(frozen=True, slots=True)
class Ports:
    main: int
    embedding: int
    generation: int


class Box:
    """One machine with memoria on it: a folder to work in, a vLLM, a GPU of 100 GiB, and `memoria`."""

    patience = PATIENCE  # seconds for a daemon's end

    def __init__(self, folder: Path, nvml_library: Path) -> None:
        self.folder, self.file = folder, folder / "memoria.yaml"
        self.vllm = StubVllm(folder)
        self.nvml = NvmlStub(folder, nvml_library)
        self.runtime = Path(tempfile.mkdtemp(prefix="memoria-")) / "run"  # a socket's path must be short
        self.ports = Ports(*free_ports(3))
        self.command: tuple[str, ...] = (sys.executable, "-m", "memoria")
        self.launcher: tuple[str, ...] = ()  # the command that is given the daemon's own, as `nice` is
        self.daemons: list[RunningDaemon] = []
        self.tls: ssl.SSLContext | None = None  # of clients
        for model in ("embedder", "writer", "second"):
            (folder / "models" / model).mkdir(parents=True)
            (folder / "models" / model / "config.json").write_text("{}")
        self.use_gpu()

    def configure(self, *, top: str = "", more_engines: str = "") -> None:
        ports = self.ports
        self.file.write_text(
            CONFIG.format(main=ports.main, embedding=ports.embedding, generation=ports.generation, top=top)
            + more_engines
        )

    def use_gpu(self, *, used: int = 0, processes: Sequence[StubProcess] = (), delay_ms: int = 0) -> None:
        """`used` and the processes' memory in GiB: what is held of the GPU's 100 from now on. `delay_ms`: how
        long the driver takes to say so."""
        held = used + sum(process.used or 0 for process in processes)
        self.nvml.set(
            gpus=[StubGpu(total=100 * GIB, used=held * GIB)],
            procs=[StubProcess(p.pid, (p.used or 0) * GIB) for p in processes],
            delays_ms={"nvmlDeviceGetMemoryInfo_v2": delay_ms} if delay_ms else None,
        )

    def env(self, extra: dict[str, str | None]) -> dict[str, str]:
        """Nothing of the environment of the tests but PATH; an `extra` that is None is taken away."""
        env: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "MEMORIA_RUNTIME_DIR": str(self.runtime),
            "MEMORIA_HOME": str(self.folder / "home"),
            **self.nvml.env(),
            **extra,
        }
        return {name: value for name, value in env.items() if value is not None}

    def call(self, *arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
        """`memoria ARGUMENTS`, to its end."""
        return subprocess.run(
            [*self.launcher, *self.command, *arguments],
            cwd=self.folder,
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *arguments: str, **env: str | None) -> RunningDaemon:
        self.daemons.append(RunningDaemon(self, arguments, self.env(env)))
        return self.daemons[-1]

    def survivors(self) -> list[int]:
        """The processes of this box's engines, by the marks in their environments."""
        return marked("MEMORIA_GATE", str(self.runtime / "gate.sock"))

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
        for pid in self.survivors():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.runtime.parent)


class RunningDaemon:
    """A `memoria run`. Its lines are read as they come; with JSON logs they hold the journal."""

    def __init__(self, box: Box, arguments: Sequence[str], env: dict[str, str]) -> None:
        self.box = box
        self._process = subprocess.Popen(
            [*box.launcher, *box.command, "run", *arguments],
            cwd=box.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.out, self.err = Lines(self._process.stdout), Lines(self._process.stderr)
        self.pid = self._process.pid

    # ------------------------------------------------------------------ asking

    def ask(self, method: str, path: str, body: object = None, *, port: int | None = None) -> Answer:
        return ask(port or self.box.ports.main, method, path, body, self.box.tls)

    def status(self) -> Status:
        """As `memoria status` gets it."""
        return Status.from_json(ask_admin(self.box.runtime / "admin.sock", "/status"))

    def engine(self, name: str) -> EngineStatus:
        return next(engine for engine in self.status().engines if engine.name == name)

    def leader(self, engine: str) -> int:
        pid = self.engine(engine).pid
        assert pid is not None
        return pid

    def core(self, engine: str) -> int:
        return self.box.vllm.events("core spawned", engine=engine)[-1].pid

    # ------------------------------------------------------------------ waiting

    def until_listening(self) -> None:
        self._until_answer("/livez")

    def until_ready(self) -> None:
        self._until_answer("/readyz")

    def told(self, engine: str, what: str, *, times: int = 1) -> str:
        """Waits until the journal has so many events of this slug (since `forget`); returns the last one's
        detail."""
        record = self.err.wait(lambda line: said(line)[:2] == (engine, what), times=times)
        return said(record)[2]

    def forget(self) -> None:
        """What was said up to now does not count any more."""
        self.err.forget()

    def story(self, *whats: str) -> list[tuple[str, str]]:
        """What the journal has told so far of these kinds, in order."""
        return [(engine, what) for engine, what, _ in map(said, self.err.lines) if what in whats]

    def _until_answer(self, path: str) -> None:
        def answers() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(f"memoria has ended: {self.err.lines[-20:]}")
            try:
                return self.ask("GET", path).status == 200
            except OSError:
                return False

        until(answers)

    # ------------------------------------------------------------------ ending

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        code = self._process.wait(self.box.patience)
        self.out.end()
        self.err.end()
        return code

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.exit_code()

    def kill(self) -> None:
        self._process.kill()
        self.exit_code()


class Lines:
    """The lines of a pipe, read by a thread of their own."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._changed = threading.Condition()
        self._ended = False
        self._from = 0
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, wanted: Callable[[str], bool], *, times: int = 1) -> str:
        """The `times`-th line that is wanted. Fails when the pipe ends without it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._found(wanted)) >= times, PATIENCE)
            found = self._found(wanted)
        assert len(found) >= times, "\n".join(["it was never said; this was:", *self.lines[-40:]])
        return found[times - 1]

    def forget(self) -> None:
        self._from = len(self.lines)

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Nothing is read from the pipe, which fills up."""
        with self._changed:
            yield

    def end(self) -> None:
        self._thread.join(PATIENCE)
        self._pipe.close()

    def _found(self, wanted: Callable[[str], bool]) -> list[str]:
        return [line for line in self.lines[self._from :] if wanted(line)]

    def _read(self) -> None:
        for line in self._pipe:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def said(line: str) -> tuple[str, str, str]:
    """A line of a JSON log as engine, slug, detail; of no engine where it is not an event."""
    record: dict[str, Any] = json.loads(line)
    return record.get("engine", ""), slug(record), record.get("detail", "")


def slug(record: Mapping[str, Any]) -> str:
    """The kind of an event, of a JSON log or the API; of a transition the state that it leads to."""
    kind: str = record.get("kind", record.get("event", ""))
    return str(record["data"]["state"]) if kind == "transition" else kind


def until(holds: Callable[[], bool]) -> None:
    """For what no line tells."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a stub engine was where; on the clock that all processes share."""

    engine: str
    begin: float
    end: float


def times_behind_gate(vllm: StubVllm) -> list[Moment]:
    """Of every start: from the gate until it listens, or until it failed. In the order of the beginning."""
    moments = []
    for event in vllm.events("through the gate"):
        ready = [e.at for e in vllm.events("ready", engine=event.engine) if e.at > event.at]
        moments.append(Moment(event.engine, event.at, min(ready, default=event.at)))
    return sorted(moments, key=lambda moment: moment.begin)
