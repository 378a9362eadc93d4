"""Configurations and devices for the planner's tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from memoria.config.model import (
    Address,
    Config,
    ConfigPath,
    DeviceKind,
    EngineConfig,
    Limits,
    Logging,
    Restart,
    Timeouts,
)
from memoria.errors import Mark
from memoria.gpu.device import Device, DeviceProcess
from memoria.text import GIB

# An H200: what NVML calls the total, and what of it the driver keeps.
H200_TOTAL = 143_771 * 2**20
H200_RESERVED = 606 * 2**20


def gpu(
    *processes: DeviceProcess,
    index: int = 0,
    total: int = H200_TOTAL,
    reserved: int = H200_RESERVED,
    used: int | None = None,
) -> Device:
    if used is None:
        used = sum(process.used_bytes or 0 for process in processes)
    return Device(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H200",
        total_bytes=total,
        used_bytes=used,
        free_bytes=total - reserved - used,
        reserved_bytes=reserved,
        processes=processes,
    )


def host(*processes: DeviceProcess, total: int = 24 * GIB, used: int = 2 * GIB) -> Device:
    device = gpu(*processes, total=total, reserved=0, used=used)
    return replace(device, uuid="host", name="2 CPUs", is_host=True)


def process(
    pid: int, used_gib: float | None, user: str = "guest", command: str = "python train.py"
) -> DeviceProcess:
    return DeviceProcess(pid, user, command, None if used_gib is None else int(used_gib * GIB))


def config(
    fractions: Mapping[str, str],
    *,
    limit: str = "0.95",
    device: DeviceKind = "cuda",
    gpu_of: Mapping[str, int | str] | None = None,
    vllm_args: Mapping[str, Any] | None = None,
) -> Config:
    """Engines by name and fraction, in a file where each takes seven lines and its fraction is the fifth."""
    marks: dict[ConfigPath, Mark] = {
        ("engines", name, "gpu_memory_utilization"): Mark("memoria.yaml", 12 + 7 * number)
        for number, name in enumerate(fractions)
    }
    return Config(
        path=Path("memoria.yaml"),
        listen=Address("127.0.0.1", 8200),
        device=device,
        gpu_limit=Decimal(limit),
        vllm="auto",
        timeouts=Timeouts(),
        restart=Restart(),
        limits=Limits(),
        logging=Logging(),
        runtime_dir=Path("run"),
        engines=tuple(
            EngineConfig(
                name=name,
                model="tiny",
                runner="generate",
                served_model_name=(name,),
                gpu=(gpu_of or {}).get(name, 0),
                gpu_memory_utilization=Decimal(fraction),
                port=None,
                transport="uds",
                vllm_args=vllm_args or {},
                env={},
            )
            for name, fraction in fractions.items()
        ),
        marks=marks,
    )
