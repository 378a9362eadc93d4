"""The locks of this release: every package of a vLLM environment, with version and hashes, for each build.

They are requirements files (`.ci/lock.py` makes them), which pip and uv read themselves; here they are
compared with what is installed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from memoria.vllm.install.facts import Variant

LOCKS = Path(__file__).parent / "locks"


@dataclass(frozen=True, slots=True)
class Difference:
    """`installed` None: it is missing."""

    package: str
    installed: str | None
    locked: str


def find_lock(version: str, variant: Variant) -> Path | None:
    """None where this release locks another vLLM."""
    path = LOCKS / f"{variant}-{version}.txt"
    return path if path.exists() else None


def locked_packages(lock: Path, python: str) -> dict[str, str]:
    """The versions by name, for a Python (its full version) on this machine's processor."""
    from packaging.requirements import Requirement  # noqa: PLC0415 (only `setup` needs it)

    short = ".".join(python.split(".")[:2])
    environment = {
        "python_version": short,
        "python_full_version": python,
        "platform_machine": platform.machine(),
    }
    found: dict[str, str] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.removesuffix("\\").strip()
        if not text or text.startswith(("#", "--hash=")):
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found[requirement.name] = str(requirement.specifier).removeprefix("==")
    return found


def differences(root: Path, lock: Path) -> list[Difference]:
    """Where the environment in `root` is not as locked. Packages beyond the lock do not count. Only reads."""
    from packaging.utils import canonicalize_name  # noqa: PLC0415 (as above)

    sites = [str(site) for site in root.glob("lib/python3.*/site-packages")]
    installed = {canonicalize_name(each.name): each.version for each in distributions(path=sites)}
    wanted = locked_packages(lock, python_of(root))
    return [
        Difference(name, installed.get(canonicalize_name(name)), version)
        for name, version in wanted.items()
        if installed.get(canonicalize_name(name)) != version
    ]


def python_of(root: Path) -> str:
    """The version of an environment's Python."""
    for name, value in _settings(root / "pyvenv.cfg"):
        if name in ("version", "version_info"):
            return value
    return platform.python_version()


def _settings(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        yield name.strip(), value.strip()
