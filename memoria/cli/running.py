"""Which configuration a command means when none is named: the file that is found, else the demo's."""

from __future__ import annotations

import os
from pathlib import Path

from memoria.config.load import find, load
from memoria.config.model import Config
from memoria.demo import config_path as demo_config
from memoria.errors import ConfigError
from memoria.text import suggestion


def running_config(flag: Path | None) -> Config:
    """The configuration whose daemon is asked; the demo's where a file is found but only the demo runs.
    Raises `ConfigError`."""
    try:
        config = load(find(flag, os.environ, Path.cwd()), os.environ)
    except ConfigError:
        if flag is None and (demo := _running_demo()) is not None:
            return demo
        raise
    if flag is None and not _is_up(config) and (demo := _running_demo()) is not None:
        return demo
    return config


def _running_demo() -> Config | None:
    demo = load(demo_config(), os.environ)
    return demo if _is_up(demo) else None


def _is_up(config: Config) -> bool:
    return admin_socket(config).exists()


def admin_socket(config: Config) -> Path:
    return config.runtime_dir / "admin.sock"


def check_engine(config: Config, name: str) -> None:
    """Raises `ConfigError` for an engine that is not there."""
    names = [engine.name for engine in config.engines]
    if name not in names:
        raise ConfigError(f"there is no engine `{name}`", hint=suggestion(name, names))
