"""A folder, a configuration with models of the real shapes, and `memoria` run with it on the real GPU; in a
dry run with stub engines on a stub GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from memoria.config.load import load
from memoria.gpu import open_reader
from memoria.supervisor.records import records_dir
from memoria.text import GIB
from tests.gpu.models import write_models
from tests.integration.daemon import Box, RunningDaemon
from tests.stub_engine.device import give_memory_back

DRY_RUN = "MEMORIA_GPU_DRY_RUN"
PATIENCE = 900.0  # seconds: a first start compiles
FRACTIONS = {"embedding": 0.30, "generation": 0.60}


def is_dry() -> bool:
    return bool(os.environ.get(DRY_RUN))


def why_not() -> str | None:
    """Why nothing can be measured here; None where it can."""
    if is_dry():
        return None
    reader = open_reader("cuda")
    try:
        reader.snapshot(0)
    except Exception as error:
        return f"no NVIDIA GPU: {error} ({DRY_RUN}=1 tries the kit without one)"
    finally:
        reader.close()
    return None


@dataclass
class Wish:
    """What a part of the kit wants to run; the engines by their fractions."""

    engines: dict[str, float] = field(default_factory=lambda: dict(FRACTIONS))
    top: dict[str, Any] = field(default_factory=dict)


class GpuBox(Box):
    def __init__(self, folder: Path, nvml_library: Path | None) -> None:
        super().__init__(folder, nvml_library or Path("none"))
        self.dry = nvml_library is not None
        shutil.rmtree(folder / "models")
        write_models(folder / "models")
        self.extra: dict[str, str | None] = {}
        if self.dry:
            self.let_load()
            for name, fraction in FRACTIONS.items():
                size = int(fraction * 100) * GIB
                self.vllm.set_faults(
                    name, gpu_bytes=size, token_seconds=0.005, load_until=str(self._may_load)
                )

    def want(self, wish: Wish | None = None) -> None:
        """Writes memoria.yaml."""
        wish = wish or Wish()
        ports = {"embedding": self.ports.embedding, "generation": self.ports.generation}
        engines: dict[str, Any] = {}
        for name, fraction in wish.engines.items():
            engines[name] = {
                "model": f"./models/{name}",
                "runner": "pooling" if name == "embedding" else "generate",
                "gpu_memory_utilization": fraction,
                "port": ports[name],
                "max_model_len": 8192,
                "args": {"load_format": "dummy"},
                "env": {"HF_HUB_OFFLINE": "1"},
            }
        if "generation" in engines:
            engines["generation"]["quantization"] = "fp8"  # as the default file's model is
        config = {
            "listen": f"127.0.0.1:{self.ports.main}",
            "log": {"dir": "logs", "format": "json"},
            **({"vllm": "./vllm"} if self.dry else {}),
            **wish.top,
            "engines": engines,
        }
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def env(self, extra: dict[str, str | None]) -> dict[str, str]:
        if self.dry:
            return super().env(self.extra | extra)
        own = {"PYTHONPATH": str(Path(__file__).parents[2]), "MEMORIA_RUNTIME_DIR": str(self.runtime)}
        merged: dict[str, str | None] = {**os.environ, **own, **self.extra, **extra}
        return {name: value for name, value in merged.items() if value is not None}

    @property
    def _may_load(self) -> Path:
        return self.folder / "may-load"

    def hold_loads(self) -> None:
        """A stub loads in no time; from now on, until `let_load`, it does not. A model takes its time."""
        self._may_load.unlink(missing_ok=True)

    def let_load(self) -> None:
        self._may_load.touch()

    def bury(self, core: int) -> None:
        """A stub's leader gives its memory back; where that was killed, this does. A driver needs nobody."""
        if self.dry:
            wait(lambda: not psutil.pid_exists(core), "the core follows its leader", every=0.01)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("NVML_STUB_FILE", self.nvml.env()["NVML_STUB_FILE"])
                give_memory_back(core)

    def check(self) -> subprocess.CompletedProcess[str]:
        """`memoria check --json`, whatever it says."""
        return self._say("check")

    def plan(self) -> subprocess.CompletedProcess[str]:
        return self._say("plan")

    def _say(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "memoria", command, "--json"],
            cwd=self.folder,
            env=self.env({}),
            capture_output=True,
            text=True,
            check=False,
        )

    def record(self, engine: str) -> dict[str, Any]:
        """What memoria keeps of the engine's last start; raises `OSError` until there is something."""
        folder = records_dir(load(self.file, self.env({})), self.env({}))
        return dict(json.loads((folder / f"{engine}.json").read_text()))

    def ready(self, *arguments: str) -> RunningDaemon:
        """`memoria run`, with all engines ready."""
        daemon = self.start(*arguments)
        wait(lambda: daemon.status().healthy, "all engines ready")
        return daemon


def core_of(leader: int) -> int:
    """The engine core below an API server: by vLLM's title, or as the stub's only child that runs code."""
    for child in psutil.Process(leader).children(recursive=True):
        shown = " ".join([child.name(), *child.cmdline()])
        if "EngineCore" in shown or "spawn_main" in shown:
            return child.pid
    raise AssertionError("no engine core")


def wait(holds: Callable[[], bool], what: str, *, every: float = 0.2) -> float:
    """Seconds until it holds. What is not there yet does not hold."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        try:
            if holds():
                return time.monotonic() - began
        except Exception:  # the daemon is only just starting, or an engine has ended
            pass
        time.sleep(every)
    raise AssertionError(f"not in {PATIENCE:g} s: {what}")


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(done.stdout))
