"""`memoria setup`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import click

from memoria.cli.options import Options, command
from memoria.cli.screens.layout import DIM, paint
from memoria.cli.screens.live import StatusLine
from memoria.errors import ExitCode, NoGpuError, SlicedGpuError, UnavailableError, UsageError
from memoria.gpu import open_reader
from memoria.vllm.install.facts import Variant
from memoria.vllm.install.find import data_home, environment_dir, read_manifest
from memoria.vllm.install.lock import differences, find_lock
from memoria.vllm.install.setup import PINNED, PipStep, export_wheels
from memoria.vllm.install.setup import setup as install_vllm

_VERSION = re.compile(r"\d+(\.\w+)*([+-][\w.]+)?", re.ASCII)


@command()
@click.option("--cpu", "variant", flag_value="cpu", help="Install the CPU build.")
@click.option("--cuda", "variant", flag_value="cuda", help="Install the CUDA build.")
@click.option("--vllm", "version", metavar="VERSION", help="Install another vLLM version.")
@click.option(
    "--export",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Install nothing; fetch all wheels into FOLDER, for a machine without a network.",
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="FOLDER",
    help="Install from such a FOLDER, without a network.",
)
@click.option("--check", is_flag=True, help="Install nothing; say what differs from this release's lock.")
def setup(
    options: Options,
    /,
    *,
    variant: str | None,
    version: str | None,
    export: Path | None,
    wheels: Path | None,
    check: bool,
) -> int:
    """Install or update vLLM in its own environment, exactly as this release of memoria has locked it.

    Without an option, the CUDA build if there is a GPU and the CPU build if not. Can be repeated at any time.

    \b
    Example:  memoria setup --cpu
    """
    if version is not None and not _VERSION.fullmatch(version):
        raise UsageError(f"`{version}` is not a vLLM version", hint="write for example `--vllm 0.33.0`")
    chosen = cast("Variant", variant) if variant else _variant_here()
    if check:
        return _check(chosen, version or PINNED[chosen], as_json=options.json)
    if export is not None:
        if wheels is not None:
            raise UsageError("`--export` fills a folder, `--wheels` installs from it: give one of them")
        export_wheels(chosen, export, _reporter(color=options.colored), version=version)
        sys.stdout.write(f"on the other machine: memoria setup --{chosen} --wheels {export}\n")
        return ExitCode.OK
    make_environment(chosen, version, color=options.colored, wheels=wheels)
    sys.stdout.write(f"next: memoria {'run' if chosen == 'cuda' else 'demo'}\n")
    return ExitCode.OK


def _check(variant: Variant, version: str, *, as_json: bool) -> ExitCode:
    lock, root = find_lock(version, variant), environment_dir(data_home(os.environ), version, variant)
    if lock is None:
        hint = f"it has vLLM {PINNED[variant]}'s"
        raise UnavailableError(f"this release has no lock of vLLM {version} ({variant})", hint=hint)
    if read_manifest(root) is None:
        raise UnavailableError(f"{root} has no complete vLLM", hint=f"memoria setup --{variant}")
    found = differences(root, lock)
    if as_json:
        body = {"vllm": version, "variant": variant, "root": str(root), "differences": [*map(asdict, found)]}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    else:
        for one in found:
            sys.stdout.write(f"{one.package}: {one.installed or 'missing'}, locked {one.locked}\n")
        sys.stdout.write(f"{root}: {len(found) or 'no'} packages differ from the lock of vLLM {version}\n")
    return ExitCode.FAILURE if found else ExitCode.OK


def make_environment(
    variant: Variant, version: str | None, *, color: bool, wheels: Path | None = None
) -> None:
    """Prints progress. Raises `UnavailableError` if the environment cannot be made."""
    began = time.monotonic()
    reporter = _reporter(color=color)
    install = install_vllm(variant, data_home(os.environ), reporter, version=version, wheels=wheels)
    reporter.step(f"vLLM {install.version} ({install.variant}) is ready: {install.root}")
    sys.stdout.write(f"done in {time.monotonic() - began:.0f} s\n")


def _reporter(*, color: bool) -> PlainReporter:
    return TerminalReporter(color) if sys.stdout.isatty() else PlainReporter()


def _variant_here() -> Variant:
    """The CUDA build if NVML finds a GPU, else the CPU build. A GPU that cannot be read decides nothing:
    raises `UnavailableError`."""
    try:
        gpu = open_reader("cuda").snapshot(0)
    except NoGpuError as error:
        sys.stdout.write(f"no GPU found ({error.problems[0].what}): installing the CPU build\n")
        return "cpu"
    except SlicedGpuError:
        sys.stdout.write("a GPU in MIG mode found: installing the CUDA build\n")
        return "cuda"
    except UnavailableError as error:
        hint = f"{error.problems[0].hint}; or choose the build with --cuda or --cpu"
        raise UnavailableError(replace(error.problems[0], hint=hint)) from error
    sys.stdout.write(f"{gpu.name} found: installing the CUDA build\n")
    return "cuda"


class PlainReporter:
    """A line per step; pip's packages are counted, not listed."""

    def step(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def progress(self, now: PipStep) -> None:
        pass


class TerminalReporter(PlainReporter):
    """Shows pip's current package on a line that is overwritten, too."""

    def __init__(self, color: bool) -> None:
        self._line, self._color = StatusLine(sys.stdout), color

    def step(self, text: str) -> None:
        self._line.clear()
        super().step(text)

    def progress(self, now: PipStep) -> None:
        self._line.show(f"  {paint(str(now)[:76], DIM, self._color)}")
