"""Paths of models, logs and sockets. Only `exists` touches the disk."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

# sun_path holds 108 bytes (unix(7)); some tools allow less, and socket names need room after the folder.
SOCKET_PATH_MAX = 100
SOCKET_NAME_MAX = 40

Located = tuple[Path, str]  # a path and its source: "environment NAME", "file" or "default"


def is_local_model(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~"))


def expand(text: str, folder: Path, environ: Mapping[str, str]) -> Path:
    """An absolute path: `~` is the home of `environ`, and relative paths start at `folder`."""
    if text == "~" or text.startswith("~/"):
        return home(environ) / text[2:]
    return Path(os.path.normpath(folder / text))


def exists(place: Path) -> bool:
    """True also where that cannot be known: whatever reads it says why it cannot."""
    try:
        return place.exists()
    except OSError:
        return True


def home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises without one)


def hub_home(environ: Mapping[str, str]) -> Path:
    """The Hugging Face hub's folder (this and the next two: huggingface_hub/constants.py)."""
    written = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expand(written, Path(), environ)


def hub_cache(environ: Mapping[str, str]) -> Path:
    written = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return expand(written, Path(), environ) if written else hub_home(environ) / "hub"


def hub_token_file(environ: Mapping[str, str]) -> Path:
    """The file in which `hf auth login` stores its token."""
    written = environ.get("HF_TOKEN_PATH")
    return expand(written, Path(), environ) if written else hub_home(environ) / "token"


def instance_id(config: Path) -> str:
    """A name for a configuration file, or a link to it, that is unique on this machine; short, as socket
    paths are limited."""
    real = config.resolve()
    return f"{real.stem[:20]}-{zlib.crc32(os.fsencode(real)):08x}"


def runtime_dir(written: str | None, config: Path, environ: Mapping[str, str]) -> Located:
    """From MEMORIA_RUNTIME_DIR, the file, systemd's RUNTIME_DIRECTORY, XDG_RUNTIME_DIR, or else in /tmp."""
    if override := environ.get("MEMORIA_RUNTIME_DIR"):
        return Path(override).absolute(), "environment MEMORIA_RUNTIME_DIR"
    if written:
        return expand(written, config.absolute().parent, environ), "file"
    if given := _systemd_folder("RUNTIME_DIRECTORY", environ):
        return given, "environment RUNTIME_DIRECTORY"
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/"):
        return Path(base, "memoria", instance_id(config)), "environment XDG_RUNTIME_DIR"
    return Path(f"/tmp/memoria-{os.getuid()}", instance_id(config)), "default"


def log_dir(written: str | None, config: Path, environ: Mapping[str, str]) -> Located:
    """From the file, systemd's LOGS_DIRECTORY, or else in memoria's folder of the user's state."""
    if written:
        return expand(written, config.absolute().parent, environ), "file"
    if given := _systemd_folder("LOGS_DIRECTORY", environ):
        return given, "environment LOGS_DIRECTORY"
    in_xdg = environ.get("XDG_STATE_HOME", "").startswith("/")
    return _state_home(config, environ) / "logs", "environment XDG_STATE_HOME" if in_xdg else "default"


def state_dir(config: Path, environ: Mapping[str, str]) -> Path:
    """For files that outlive the daemon and can be lost without harm: systemd's STATE_DIRECTORY, or else
    memoria's folder of the user's state."""
    return _systemd_folder("STATE_DIRECTORY", environ) or _state_home(config, environ)


def _state_home(config: Path, environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME", "")
    state = Path(base) if base.startswith("/") else home(environ) / ".local/state"
    return state / "memoria" / instance_id(config)


def _systemd_folder(name: str, environ: Mapping[str, str]) -> Path | None:
    first = environ.get(name, "").partition(":")[0]
    return Path(first) if first.startswith("/") else None
