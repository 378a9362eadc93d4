"""A running daemon with two engines, `embedding` and `generation`, stubs or real: what commands do to it.

daemon = of_stub(box, {"generation": {"token_seconds": 0.01}})    # or of_vllm(folder)
os.kill(random.choice(daemon.vital("generation")), signal.SIGKILL)
daemon.until_ready_again("generation", restarts)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from memoria.admin.status.status import EngineStatus, Status
from memoria.cli.client import request
from memoria.engine.process.marker import marked
from tests.faults.inside import observed
from tests.faults.traffic import Expected, OfStub, OfVllm
from tests.integration.daemon import Box
from tests.stub_nvml import build_library
from tests.vllm.daemon import RealDaemon

ENGINES = ("embedding", "generation")
LONGEST_BACKOFF = 0.2 * 1.2  # seconds: of the configuration below, with its jitter
RESTART = {"initial": 0.1, "cap": 0.2}
STUB_PATIENCE_S, VLLM_PATIENCE_S = 30.0, 300.0


@dataclass(frozen=True, slots=True)
class Target:
    """`folder`: where `observed` Pythons write to. `journal` gives what the daemon has logged so far;
    `stop` ends it gently and returns its exit code, `abandon` waits for one that was killed."""

    pid: int
    port: int
    runtime: Path
    folder: Path
    expected: Expected
    patience: float
    journal: Callable[[], list[str]]
    stop: Callable[[], int]
    abandon: Callable[[], object]

    def status(self) -> Status:
        return Status.from_json(request(self.runtime / "admin.sock", "/status"))

    def engine(self, name: str) -> EngineStatus:
        return next(engine for engine in self.status().engines if engine.name == name)

    def tree(self, engine: str) -> list[int]:
        """The living processes of one engine, by the marks in their environments."""
        found = []
        for pid in self.survivors():
            with suppress(psutil.Error):
                if psutil.Process(pid).environ()["MEMORIA_ENGINE"] == engine:
                    found.append(pid)
        return found

    def vital(self, engine: str) -> list[int]:
        """Those of its tree without which it cannot go on: not Python's resource tracker, which only tidies
        up after the others."""
        return [pid for pid in self.tree(engine) if "resource_tracker" not in _command(pid)]

    def survivors(self) -> list[int]:
        """Of all engines."""
        return marked("MEMORIA_GATE", str(self.runtime / "gate.sock"))

    def until_ready_again(self, engine: str, restarts: int) -> None:
        """After more restarts than so many."""

        def again() -> bool:
            now = self.engine(engine)
            return now.restarts > restarts and now.state == "ready"

        self.until(again)

    def until_idle(self) -> None:
        self.until(lambda: all(engine.in_flight == engine.held == 0 for engine in self.status().engines))

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not holds():
            assert time.monotonic() < deadline, "it never became true"
            time.sleep(0.02)


def of_stub(box: Box, faults: Mapping[str, Mapping[str, Any]], **keys: Any) -> Target:
    """Ready. `faults` are the stub engines', `keys` are laid over the configuration of the box, which needs
    nothing but to be new or used by this alone."""
    box.configure()
    for engine, own in faults.items():
        box.vllm.set_faults(engine, **own)
    box.file.write_text(yaml.safe_dump(_over(yaml.safe_load(box.file.read_text()), keys)))
    daemon = box.start(PYTHONPATH=observed(box.folder))
    daemon.until_ready()
    return Target(
        daemon.pid,
        box.ports.main,
        box.runtime,
        box.folder,
        OfStub(),
        STUB_PATIENCE_S,
        journal=lambda: list(daemon.err.lines),
        stop=daemon.stop,
        abandon=daemon.exit_code,
    )


def of_vllm(folder: Path, words: int = OfVllm.TEXTS, **keys: Any) -> Target:
    """Ready, after some ten seconds; needs `memoria setup --cpu`. `words`: in the longest text."""
    daemon = RealDaemon(folder, environment={"PYTHONPATH": observed(folder)}, restart=RESTART, **keys)
    daemon.wait_ready()
    return Target(
        daemon.process.pid,
        daemon.port,
        daemon.runtime_dir,
        folder,
        OfVllm(words),
        VLLM_PATIENCE_S,
        journal=lambda: daemon.journal_file.read_text().splitlines(),
        stop=daemon.stop,
        abandon=daemon.stop,
    )


@contextmanager
def stub_box() -> Iterator[Box]:
    """For a command; a test has the fixture."""
    with tempfile.TemporaryDirectory() as name:
        box = Box(Path(name), build_library(Path(name)))
        try:
            yield box
        finally:
            box.close()


@contextmanager
def vllm_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _command(pid: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
