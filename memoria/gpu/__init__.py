"""Device facts. Start with `open_reader`; only `nvml.py` knows NVML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from memoria.errors import Problem, UnavailableError

if TYPE_CHECKING:
    from memoria.config.model import DeviceKind
    from memoria.gpu.device import Device, DeviceReader


def open_reader(kind: DeviceKind, environ: Mapping[str, str] = os.environ) -> DeviceReader:
    """The reader for `device: cuda` or `device: cpu`. Nothing is opened before the first call. GPUs are those
    that `environ` makes visible to CUDA."""
    # Each imports a library that the other kind, and `memoria --help`, do not need.
    if kind == "cpu":
        from memoria.gpu.host import HostReader  # noqa: PLC0415

        return HostReader()
    from memoria.gpu.nvml import NvmlReader  # noqa: PLC0415

    return NvmlReader(environ)


def read_devices(reader: DeviceReader, wanted: Iterable[int | str]) -> dict[int | str, Device]:
    """A snapshot of each of `wanted` (index or UUID). Raises one `UnavailableError` with every problem."""
    devices: dict[int | str, Device] = {}
    problems: dict[str, Problem] = {}
    for which in dict.fromkeys(wanted):
        try:
            devices[which] = reader.snapshot(which)
        except UnavailableError as error:
            problems.update((problem.what, problem) for problem in error.problems)
    if problems:
        raise UnavailableError(problems.values())
    return devices
