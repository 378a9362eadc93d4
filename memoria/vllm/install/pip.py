"""Runs pip in an environment, with the user's own pip configuration, and follows its output."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memoria.errors import Problem, UnavailableError

# Variables that would lead pip or Python out of the environment. Indexes, proxies and certificates stay.
_MISLEADING = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_DRY_RUN", "PYTHONHOME", "PYTHONPATH")
_KEPT_LINES = 200

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
    environ = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
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
    last = [line[:300] for line in tail if line.startswith("ERROR:")] or [line[:300] for line in tail if line]
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
