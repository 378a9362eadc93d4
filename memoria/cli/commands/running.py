"""Which daemon a command means when none is named: that of the file that is found, else the demo's."""

from __future__ import annotations

import os
from pathlib import Path

from memoria.config.file import Place, find, locate
from memoria.demo import config_path as demo_config
from memoria.errors import ConfigError


def running(flag: Path | None) -> Place:
    """Where the daemon is that a command asks, and that of the demo where only the demo runs. What is wrong
    with the file is not looked at. Raises `ConfigError` where there is none."""
    try:
        place = locate(find(flag, os.environ, Path.cwd()), os.environ)
    except ConfigError:
        if flag is None and _is_up(demo := _demo()):
            return demo
        raise
    if flag is None and not _is_up(place) and _is_up(demo := _demo()):
        return demo
    return place


def _demo() -> Place:
    return locate(demo_config(), os.environ)


def _is_up(place: Place) -> bool:
    try:
        return place.admin_socket.exists()
    except PermissionError:  # somebody else's: whoever asks it is told so
        return True
