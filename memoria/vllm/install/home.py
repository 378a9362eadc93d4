"""Where memoria keeps what it made: one folder, in it one environment per vLLM version and variant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memoria.vllm.install.facts import Variant


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
