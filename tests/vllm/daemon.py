"""`memoria demo` as a process of its own, on ports of its own, with its journal as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from memoria.demo import config_path
from tests.ports import free_ports

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds: two cores, four imports of torch
NAMES = {"embedding": "tiny-embedding", "generation": "tiny-generation"}


class RealDaemon:
    """`keys` are laid over the demo's file, and `only` names the one engine of it that is run, with `engine`
    laid over what the file says of that, or `engines` over what it says of each. `environment` is the
    daemon's, beside the usual."""

    def __init__(
        self,
        folder: Path,
        only: str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        **keys: Any,
    ) -> None:
        self.port, self.embedding_port, self.generation_port = free_ports(3)
        self.runtime_dir = Path(
            tempfile.mkdtemp(prefix="memoria-")
        )  # pytest's own paths are too long for sockets
        self.url = f"http://127.0.0.1:{self.port}"
        self.journal_file = folder / "journal.jsonl"
        self._output = (folder / "output.txt").open("wb")
        self._journal = self.journal_file.open("wb")
        self.env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "ROUTER_PORT": str(self.port),
            "VLLM_EMBED_PORT": str(self.embedding_port),
            "VLLM_GEN_PORT": str(self.generation_port),
            "LOG_FORMAT": "json",
            "VLLM_ENABLE_RESPONSES_API_STORE": "1",  # responses are kept, to be asked for by their ids
            "XDG_STATE_HOME": str(folder / "state"),
            "MEMORIA_RUNTIME_DIR": str(self.runtime_dir),
            **environment,
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "memoria",
                *(["run", "-c", str(_changed(folder, only, keys))] if only or keys else ["demo"]),
            ],
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._journal,
        )

    def wait_ready(self) -> None:
        self.wait(lambda: self.health()["status"] == "healthy", "all engines ready")

    def wait(self, condition: Any, what: str) -> None:
        """Asks again and again: the daemon's answers are the only event there is from outside."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"memoria ended with {self.process.returncode}:\n{self._said()}")
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not in {PATIENCE:g} s: {what}\n{self._said()}")

    def health(self) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/health")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.loads(error.read()))

    def status(self) -> dict[str, dict[str, Any]]:
        """`memoria status --json`, by engine."""
        done = subprocess.run(
            [sys.executable, "-m", "memoria", "status", "--json"],
            cwd=Path(self.journal_file).parent,
            env=self.env,
            capture_output=True,
            check=False,
        )
        return {engine["name"]: engine for engine in json.loads(done.stdout)["engines"]}

    def journal(self) -> list[dict[str, Any]]:
        lines = self.journal_file.read_text().splitlines()
        return [record for line in lines if (record := json.loads(line)).get("engine")]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self._output.close()
        self._journal.close()
        return code

    def _said(self) -> str:
        return Path(self._output.name).read_text() + self.journal_file.read_text()[-4000:]


def _changed(folder: Path, only: str | None, keys: dict[str, Any]) -> Path:
    """The demo's file, with one of its two engines or with both."""
    demo = yaml.safe_load(config_path().read_text())
    own, each = keys.pop("engine", {}), keys.pop("engines", {})
    engines = {
        name: {**engine, **own, **each.get(name, {})}
        for name, engine in demo["engines"].items()
        if only in (None, name)
    }
    for engine in engines.values():
        engine["model"] = str(config_path().parent / engine["model"])
    file = folder / "memoria.yaml"
    file.write_text(yaml.safe_dump({**demo, **keys, "engines": engines}))
    return file
