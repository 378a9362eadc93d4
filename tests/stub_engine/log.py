"""Lines as vLLM logs them."""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.stub_engine.faults import Faults, Step


class Log:
    def __init__(self, process: str, faults: Faults) -> None:
        self._process, self._faults = process, faults

    def info(self, text: str, *, place: str = "stub.py:1") -> None:
        self._write(f"INFO {time.strftime('%m-%d %H:%M:%S')} [{place}] {text}")

    def error(self, text: str, *, place: str = "core.py:1510") -> None:
        self._write(f"ERROR {time.strftime('%m-%d %H:%M:%S')} [{place}] {text}")

    def _write(self, text: str) -> None:
        print(f"({self._process} pid={os.getpid()}) {text}", flush=True)

    def reach(self, step: Step) -> None:
        """Fails or hangs here if the faults say so."""
        if self._faults.hang_at == step:
            while True:
                signal.pause()
        if self._faults.fail_at == step:
            if self._process == "EngineCore":
                self.error("EngineCore failed to start.")
            self.error("Traceback (most recent call last):")
            for line in self._faults.log:
                self.error(line)
            if self._faults.exit_code < 0:
                os.kill(os.getpid(), -self._faults.exit_code)
            sys.exit(self._faults.exit_code)
