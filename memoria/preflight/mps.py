"""What `mps: true` needs: the driver's control program, whole GPUs, and a driver that enforces the limits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

from memoria.config.model import Config
from memoria.errors import MemoriaError, UnavailableError
from memoria.plan.plan import Plan

CONTROL = "nvidia-cuda-mps-control"
# CUDA 11.5, the first with CUDA_MPS_PINNED_DEVICE_MEM_LIMIT.
LEAST_DRIVER_OF_MEMORY_LIMITS = 495


def find_control(environ: Mapping[str, str]) -> str:
    """Raises `UnavailableError`."""
    if (found := shutil.which(CONTROL, path=environ.get("PATH"))) is None:
        raise UnavailableError(
            f"`mps: true` needs `{CONTROL}`, which is not on PATH",
            hint="it comes with the driver (nvidia-compute-utils on Debian and Ubuntu); or remove `mps`",
        )
    return found


def enforces_memory(driver: str) -> bool:
    """Unknown drivers are taken for new."""
    major = re.match(r"\d+", driver)
    return major is None or int(major[0]) >= LEAST_DRIVER_OF_MEMORY_LIMITS


def limits_in_words(driver: str) -> str:
    if enforces_memory(driver):
        return "enforces `compute_percent` and `pinned_memory`"
    return f"enforces `compute_percent`; `pinned_memory` from {LEAST_DRIVER_OF_MEMORY_LIMITS} on"


def mps_errors(
    config: Config, plan: Plan | None, driver: str, environ: Mapping[str, str]
) -> Iterator[MemoriaError]:
    if not config.mps:
        return
    try:
        find_control(environ)
    except UnavailableError as error:
        yield error
    for planned in plan.devices if plan else ():
        if planned.device.uuid.startswith("MIG-"):
            yield UnavailableError(
                f"`mps: true` and {planned.device.label}, a MIG slice: "
                "each slice needs a control daemon of its own",
                hint="remove `mps`, or take a whole GPU",
            )
    limited = [engine.name for engine in config.engines if engine.pinned_memory is not None]
    if limited and driver and not enforces_memory(driver):
        yield UnavailableError(
            f"driver {driver} does not enforce `pinned_memory` ({', '.join(limited)})",
            hint=f"from {LEAST_DRIVER_OF_MEMORY_LIMITS} on drivers do; `compute_percent` works here, too",
        )
