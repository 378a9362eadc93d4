"""The kit without a GPU: with stub engines on a stub of the driver, or with vLLM's CPU build."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from memoria.bench.load import Load
from memoria.demo import config_path
from memoria.gpu import open_reader
from memoria.text import GIB
from tests.gpu.box import MIB, GpuBox, Wish, wait
from tests.integration.daemon import Box
from tests.stub_engine.device import held
from tests.stub_mps import StubMps

SHORT = Load(1.0, 0.2, streams=4, prompt_words=16, max_tokens=16, embedders=4, texts=4, text_words=16)
CONTEXT_BYTES = 400 * MIB


class StubBox(GpuBox):
    patience = Box.patience
    load = SHORT
    dry = True
    steps_bytes = (128 * MIB, 128 * MIB)  # coarse: a step is a process

    def __init__(self, folder: Path, nvml_library: Path | None = None) -> None:
        super().__init__(folder, nvml_library)
        self.let_load()
        self.vllm.set_faults(context_bytes=CONTEXT_BYTES, token_seconds=0.005, load_until=str(self._may_load))
        self.extra["PATH"] = StubMps(folder).path

    def _top(self) -> dict[str, Any]:
        return {"vllm": "./vllm"}

    def env(self, extra: dict[str, str | None]) -> dict[str, str]:
        return Box.env(self, self.extra | extra)

    @property
    def uuid(self) -> str | None:
        return None

    def used_bytes(self) -> int:
        rows = [line.split("\t") for line in Path(self._facts).read_text().splitlines()]
        return next(int(row[5]) for row in rows if row[0] == "gpu") + held(Path(self._facts))

    @property
    def _facts(self) -> str:
        return self.nvml.env()["NVML_STUB_FILE"]

    def bury(self, cores: Collection[int]) -> None:
        wait(lambda: not any(map(psutil.pid_exists, cores)), "the cores have ended", every=0.01)

    @property
    def _may_load(self) -> Path:
        return self.folder / "may-load"

    def hold_loads(self) -> None:
        self._may_load.unlink(missing_ok=True)

    def let_load(self) -> None:
        self._may_load.touch()


class CpuBox(GpuBox):
    """Real vLLM with the demo's two models. Host memory is everybody's, and no GPU's."""

    on_gpu = False
    dry = True
    load = replace(SHORT, seconds=4.0, warm_up=1.0)
    slack_bytes = 4 * GIB

    def __init__(self, folder: Path, nvml_library: Path | None = None) -> None:
        super().__init__(folder, nvml_library)
        self._reader = open_reader("cpu")

    def want(self, wish: Wish | None = None) -> None:
        small = dict.fromkeys((wish or Wish()).engines, 0.12)
        super().want(Wish(small, wish.top, wish.keys) if wish else Wish(small))

    def _top(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def _engine(self, name: str) -> dict[str, Any]:
        demo = yaml.safe_load(config_path().read_text())["engines"][name]
        model = str(config_path().parent / demo["model"])
        own = super()._engine(name)
        return {**demo, "model": model, "served_model_name": name, "port": own["port"]}

    @property
    def mps_control(self) -> str | None:
        return None
