"""A folder, a configuration with models of the real shapes, and `memoria` run with it on the real GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from memoria.bench.load import Load
from memoria.config.load import load
from memoria.errors import ExitCode, MemoriaError
from memoria.gpu import open_reader
from memoria.preflight.mps import CONTROL
from memoria.preflight.records import records_dir
from tests.gpu.budget import SECONDS
from tests.gpu.models import write_models
from tests.integration.daemon import Box, RunningDaemon

PATIENCE = float(os.environ.get("MEMORIA_GPU_PATIENCE", "400"))  # seconds: a first start compiles
FRACTIONS = {"embedding": 0.30, "generation": 0.60}
MIB = 2**20
CLOSE_BYTES = 256 * MIB  # what may be missing when an engine's memory counts as given back
CHECKED = (ExitCode.OK, ExitCode.MEMORY_HELD, ExitCode.CONFIG)  # what `check` may say of a fraction


@dataclass
class Wish:
    """What a part of the kit wants to run: the engines by their fractions, and other keys of the file."""

    engines: dict[str, float] = field(default_factory=lambda: dict(FRACTIONS))
    top: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)  # of every engine


class GpuBox(Box):
    """The real GPU. vLLM is what `memoria setup` made, or what MEMORIA_GPU_VLLM names."""

    patience = 120.0  # seconds for a daemon's end
    dry = False  # figures mean something
    on_gpu = True  # memory behaves like that of a GPU
    load = Load(
        20.0 if SECONDS not in os.environ else 8.0,
        3.0,
        streams=32,
        prompt_words=128,
        max_tokens=256,
        embedders=32,
        texts=8,
        text_words=128,
    )
    has_time = SECONDS not in os.environ  # else the parts are cut short
    slack_bytes = CLOSE_BYTES
    steps_bytes = (16 * MIB, 32 * MIB)  # how finely the limits of `check` and of vLLM are told

    def __init__(self, folder: Path, nvml_library: Path | None = None) -> None:
        super().__init__(folder, nvml_library or Path("none"))
        self.extra: dict[str, str | None] = {}
        self._reader = open_reader("cuda")

    # ------------------------------------------------------------------ what is run

    def want(self, wish: Wish | None = None) -> None:
        """Writes memoria.yaml."""
        wish = wish or Wish()
        engines = {
            name: self._engine(name) | {"gpu_memory_utilization": fraction} | wish.keys
            for name, fraction in wish.engines.items()
        }
        config = {
            "listen": f"127.0.0.1:{self.ports.main}",
            "log": {"dir": "logs", "format": "json"},
            **self._top(),
            **wish.top,
            "engines": engines,
        }
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def _top(self) -> dict[str, Any]:
        return {"vllm": os.environ.get("MEMORIA_GPU_VLLM", "auto")}

    def _engine(self, name: str) -> dict[str, Any]:
        engine: dict[str, Any] = {
            "model": str(models_folder() / name),
            "runner": "pooling" if name == "embedding" else "generate",
            "port": self.ports.embedding if name == "embedding" else self.ports.generation,
            "max_model_len": 8192,
            "args": {"load_format": "dummy"},
            "env": {"HF_HUB_OFFLINE": "1"},
        }
        # As the default file's model is, in a spelling that vLLM 0.26 to 0.33 all know; `fp8` is deprecated.
        method = os.environ.get("MEMORIA_GPU_QUANTIZATION", "fp8_per_tensor")
        return engine | ({"quantization": method} if name == "generation" and method else {})

    def env(self, extra: dict[str, str | None]) -> dict[str, str]:
        own = {"PYTHONPATH": str(Path(__file__).parents[2]), "MEMORIA_RUNTIME_DIR": str(self.runtime)}
        merged: dict[str, str | None] = {**os.environ, **own, **self.extra, **extra}
        return {name: value for name, value in merged.items() if value is not None}

    # ------------------------------------------------------------------ what it says

    def check(self) -> dict[str, Any]:
        """`memoria check --json`, whether it accepts or refuses."""
        return self._say("check")

    def plan(self) -> dict[str, Any]:
        return self._say("plan")

    def _say(self, command: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "memoria", command, "--json"],
            cwd=self.folder,
            env=self.env({}),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode in CHECKED, done.stderr
        return dict(json.loads(done.stdout))

    def record(self, engine: str) -> dict[str, Any]:
        """What memoria keeps of the engine's last start; raises `OSError` until there is something."""
        folder = records_dir(load(self.file, self.env({})), self.env({}))
        return dict(json.loads((folder / f"{engine}.json").read_text()))

    @property
    def uuid(self) -> str | None:
        """The GPU's, to start an engine on it by hand."""
        return self._reader.snapshot(0).uuid

    def used_bytes(self) -> int:
        """Of the device, now, whoever holds it."""
        return self._reader.snapshot(0).used_bytes

    # ------------------------------------------------------------------ what happens

    def ready(self, *arguments: str) -> RunningDaemon:
        """`memoria run`, with all engines ready."""
        daemon = self.start(*arguments)
        self.until_all_ready(daemon)
        return daemon

    def until_all_ready(self, daemon: RunningDaemon) -> None:
        """Fails as soon as one never will be."""

        def holds() -> bool:
            lines = daemon.err.lines
            if daemon.has_ended():
                pytest.fail("memoria has ended: " + "\n".join(lines[-20:]))
            status = daemon.status()
            if lost := [engine for engine in status.engines if engine.state == "failed"]:
                pytest.fail("\n".join([f"{e.name} has failed: {e.detail}" for e in lost] + lines[-20:]))
            return status.healthy

        wait(holds, "all engines are ready")

    def bury(self, cores: Collection[int]) -> None:
        """After a kill: a driver gives a dead process's memory back by itself."""

    def hold_loads(self) -> None:
        """From now on, until `let_load`, no model is loaded to its end. Real ones take their time anyway."""

    def let_load(self) -> None: ...

    @property
    def mps_control(self) -> str | None:
        return shutil.which(CONTROL, path=self.env({})["PATH"])

    def close(self) -> None:
        self._reader.close()
        super().close()


def models_folder() -> Path:
    """Always the same: vLLM keeps compiled graphs by the model's path, and a start without takes minutes."""
    folder = Path(tempfile.gettempdir()) / f"memoria-gpu-models-{os.getuid()}"
    if not folder.exists():
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
        write_models(draft)
        draft.replace(folder)
    return folder


def core_of(leader: int) -> int:
    """The engine core below an API server: by vLLM's title, or before it has one as the only child that runs
    code."""
    for child in psutil.Process(leader).children(recursive=True):
        shown = " ".join([child.name(), *child.cmdline()])
        if "EngineCore" in shown or "spawn_main" in shown:
            return child.pid
    raise LookupError(f"{leader} has no engine core")


def wait(holds: Callable[[], bool], what: str, *, every: float = 0.2) -> float:
    """Seconds until it holds. What is not there yet does not hold."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        try:
            if holds():
                return time.monotonic() - began
        except (MemoriaError, OSError, LookupError, AssertionError, ValueError, psutil.Error):
            pass  # the daemon is only just starting, or an engine has ended
        time.sleep(every)
    raise AssertionError(f"not in {PATIENCE:g} s: {what}")
