"""Does the vLLM in an environment load? Asked of a new interpreter there, never of this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from memoria.errors import Problem, UnavailableError

# All that an API server and its engine core import, and the compiled kernels: vLLM picks those that fit this
# processor (vllm/platforms/cpu.py); importing `vllm._C` by name can die of an illegal instruction.
_LOAD_VLLM = """
import torch, vllm
from vllm.platforms import current_platform
current_platform.import_kernels()
import vllm.entrypoints.openai.api_server
import vllm.v1.engine.core
"""
_TIMEOUT_S = 600.0  # a first import from a cold disk takes long


def verify(python: Path) -> None:
    """Raises UnavailableError with the last lines of what Python said. Takes about 13 s on two cores."""
    said = _try(python, _LOAD_VLLM)
    if said is not None:
        raise UnavailableError(
            Problem(
                "vLLM is installed but does not load",
                tuple(said.splitlines()[-5:]),
                "run `memoria setup` again, with the same flags",
            )
        )


def loads_beside_torch(python: Path, module: str) -> bool:
    """False only for a module that is there and breaks, as PyPI's torchvision does beside a CPU torch."""
    return (
        _try(
            python, f"import importlib.util, torch\nif importlib.util.find_spec({module!r}): import {module}"
        )
        is None
    )


def _try(python: Path, code: str) -> str | None:
    """None when `code` ran, else what it said."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S:.0f} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stdout.strip() or f"exit code {done.returncode}"
