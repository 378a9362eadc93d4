"""The report: figures by part, each with when it was measured and whether its test passed, and on what.

A file in `results/` holds the parts that were measured on one day with one machine and the same versions. A
later run adds its parts, or replaces the same ones; whatever differs makes a file of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from memoria import __version__
from memoria.config.model import DeviceKind
from memoria.errors import MemoriaError
from memoria.gpu import open_reader
from memoria.vllm.install.find import data_home, find

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "flashinfer-python", "transformers")

_ASK = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"python": sys.version.split()[0], **{name: version(name) for name in sys.argv[1:]}}))
"""


def machine() -> dict[str, Any]:
    """The first GPU and the host around it."""
    reader = open_reader("cuda")
    try:
        device, driver = reader.snapshot(0), reader.driver()
    finally:
        reader.close()
    return {
        "gpu": device.name,
        "gpu_bytes": device.total_bytes,
        "driver": driver,
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
    }


def versions(vllm: str, device: DeviceKind) -> dict[str, Any]:
    """memoria's, and those of vLLM's environment; `vllm` as in memoria.yaml. torch's holds CUDA's."""
    try:
        install = find(vllm, data_home(os.environ), device)
    except MemoriaError as error:
        return {"memoria": __version__, "vllm": str(error)}
    if install.root is None:
        return {"memoria": __version__, "vllm": _output(install.command[0], "--version")}
    told = _output(str(install.root / "bin" / "python"), "-c", _ASK, *PACKAGES)
    return {"memoria": __version__, "vllm": install.version, **json.loads(told)}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.strip()


def part(figures: Any, failure: str | None) -> dict[str, Any]:
    return {"at": time.strftime("%Y-%m-%d %H:%M:%S%z"), "failure": failure, "figures": figures}


def save(folder: Path, day: str, facts: dict[str, Any], parts: dict[str, Any]) -> Path:
    """`facts` is all but the parts. Returns the file that has them now."""
    stem = f"{day}-{re.sub(r'[^a-z0-9]+', '-', str(facts['machine']['gpu']).lower())}"
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}.json"
        known = json.loads(path.read_text()) if path.exists() else {**facts, "parts": {}}
        if {key: value for key, value in known.items() if key != "parts"} == facts:
            break
        number += 1
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({**facts, "parts": known["parts"] | parts}, indent=2) + "\n")
    draft.replace(path)  # a run may be cut off at any time
    return path
