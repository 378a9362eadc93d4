"""`memoria setup`."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from typing import cast

from memoria.errors import ExitCode, NoGpuError, UnavailableError, UsageError
from memoria.gpu import open_reader
from memoria.vllm.install.facts import Variant
from memoria.vllm.install.find import data_home
from memoria.vllm.install.pip import PipStep
from memoria.vllm.install.setup import setup

_VERSION = re.compile(r"\d+(\.\w+)*([+-][\w.]+)?", re.ASCII)


def run_setup(variant: str | None, version: str | None, *, color: bool) -> int:
    if version is not None and not _VERSION.fullmatch(version):
        raise UsageError(f"`{version}` is no version of vLLM", hint="write `--vllm 0.33.0`, say")
    chosen = cast("Variant", variant) if variant else _variant_here()
    make_environment(chosen, version, color=color)
    sys.stdout.write(f"next: memoria {'run' if chosen == 'cuda' else 'demo'}\n")
    return ExitCode.OK


def make_environment(variant: Variant, version: str | None, *, color: bool) -> None:
    """Prints progress; raises `UnavailableError` when the environment cannot be made."""
    began = time.monotonic()
    reporter = TerminalReporter(color) if sys.stdout.isatty() else PlainReporter()
    install = setup(variant, data_home(os.environ), reporter, version=version)
    reporter.step(f"vLLM {install.version} ({install.variant}) is ready: {install.root}")
    sys.stdout.write(f"done in {time.monotonic() - began:.0f} s\n")


def _variant_here() -> Variant:
    """The CUDA build where NVML finds a GPU, the CPU build where there is none. A GPU that is there and
    cannot be read is no reason for either: raises `UnavailableError`."""
    try:
        gpu = open_reader("cuda").snapshot(0)
    except NoGpuError as error:
        sys.stdout.write(f"no GPU found ({error.problems[0].what}): the CPU build\n")
        return "cpu"
    except UnavailableError as error:
        hint = f"{error.problems[0].hint}; or say which build it is to be: --cuda, or --cpu"
        raise UnavailableError(replace(error.problems[0], hint=hint)) from error
    sys.stdout.write(f"{gpu.name} found: the CUDA build\n")
    return "cuda"


class PlainReporter:
    """A line per step; pip's packages are counted, not listed."""

    def step(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def progress(self, now: PipStep) -> None:
        pass


class TerminalReporter(PlainReporter):
    """The same, with pip's current package on a line that is overwritten."""

    def __init__(self, color: bool) -> None:
        self._dim, self._plain = ("\033[2m", "\033[0m") if color else ("", "")

    def step(self, text: str) -> None:
        sys.stdout.write("\r\033[K")
        super().step(text)

    def progress(self, now: PipStep) -> None:
        sys.stdout.write(f"\r\033[K  {self._dim}{str(now)[:76]}{self._plain}")
        sys.stdout.flush()
