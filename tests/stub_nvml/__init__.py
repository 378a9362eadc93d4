"""GPUs made of a text file: a libnvidia-ml.so.1 for tests, so that the real pynvml path runs without a GPU.

    stub = NvmlStub(tmp_path, build_library(some_folder))
    stub.set(gpus=[StubGpu(total=80 * GIB)], procs=[StubProcess(pid=4711, used=47 * GIB)])
    subprocess.run([...], env={**os.environ, **stub.env()})
    stub.set(...)   # at any time: every NVML call reads the file anew

The dynamic linker reads LD_LIBRARY_PATH when a process starts, so the code under test must run in a process
of its own. The fixtures `nvml_library` and `nvml_stub` are in tests/conftest.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_GPU = -1


def place_of(gpu: int, slice_: int | None) -> int:
    """As nvml.c counts places."""
    return gpu if slice_ is None else gpu + 100 * (slice_ + 1)


@dataclass(frozen=True, slots=True)
class StubGpu:
    """Bytes; free is `total - used - reserved`."""

    total: int
    used: int = 0
    reserved: int = 0
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    name: str = "NVIDIA Stub"
    in_mig_mode: bool = False


@dataclass(frozen=True, slots=True)
class StubSlice:
    """A MIG slice, with its own memory. Its GPU is in MIG mode."""

    total: int
    uuid: str
    gpu: int = 0
    number: int = 0
    used: int = 0
    reserved: int = 0
    name: str = "NVIDIA Stub MIG 1g.10gb"

    @property
    def place(self) -> int:
        return place_of(self.gpu, self.number)


@dataclass(frozen=True, slots=True)
class StubProcess:
    """A process on a GPU. `used` None: the driver gives no figure."""

    pid: int
    used: int | None
    gpu: int = 0
    slice: int | None = None
    is_mps_client: bool = False


@dataclass(frozen=True, slots=True)
class StubError:
    """What an NVML function returns instead of an answer, by its C name (`nvmlDeviceGetMemoryInfo_v2`)."""

    function: str
    code: int
    gpu: int = EVERY_GPU


class NvmlStub:
    """One machine's GPUs, kept in `folder`. There are none until `set`."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.file = folder / "nvml.txt"
        self._library = library
        self.set()

    def env(self) -> dict[str, str]:
        inherited = os.environ.get("LD_LIBRARY_PATH")
        libraries = str(self._library.parent) + (f":{inherited}" if inherited else "")
        return {"LD_LIBRARY_PATH": libraries, "NVML_STUB_FILE": str(self.file)}

    def set(
        self,
        *,
        gpus: Sequence[StubGpu] = (),
        slices: Sequence[StubSlice] = (),
        procs: Sequence[StubProcess] = (),
        errors: Sequence[StubError] = (),
        delays_ms: dict[str, int] | None = None,
    ) -> None:
        """Replaces everything, at once for any reader."""
        rows: list[tuple[object, ...]] = [
            ("gpu", index, gpu.uuid, gpu.name, gpu.total, gpu.used, gpu.reserved)
            for index, gpu in enumerate(gpus)
        ]
        rows += [("migmode", index) for index, gpu in enumerate(gpus) if gpu.in_mig_mode]
        rows += [("mig", s.place, s.uuid, s.name, s.total, s.used, s.reserved) for s in slices]
        for proc in procs:
            kind = "mpsproc" if proc.is_mps_client else "proc"
            used = "-" if proc.used is None else proc.used
            rows.append((kind, place_of(proc.gpu, proc.slice), proc.pid, used))
        rows += [("error", error.function, error.code, error.gpu) for error in errors]
        rows += [("delay", function, delay) for function, delay in (delays_ms or {}).items()]
        new = self.file.with_suffix(".new")
        new.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
        new.replace(self.file)


def build_library(folder: Path) -> Path:
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source],
        check=True,
    )
    return library
