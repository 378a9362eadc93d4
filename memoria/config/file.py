"""The configuration file: where it is looked for, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memoria.errors import ConfigError, Problem

SYSTEM_FILE = Path("/etc/memoria/memoria.yaml")


def find(flag: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The file to use: `flag`, MEMORIA_CONFIG, `cwd`/memoria.yaml, /etc/memoria/memoria.yaml.

    The first two are taken at their word. Raises `ConfigError` when nothing is there."""
    if flag is not None:
        return cwd / flag
    if named := environ.get("MEMORIA_CONFIG"):
        return cwd / named
    candidates = (cwd / "memoria.yaml", SYSTEM_FILE)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        Problem(
            "no configuration file",
            tuple(f"{shown(candidate)}  not there" for candidate in candidates),
            "name one with --config or MEMORIA_CONFIG; `memoria demo` needs none",
        )
    )


def shown(path: Path) -> str:
    """A path as a person in this folder would write it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def read_text(path: Path) -> str:
    """Raises `ConfigError`."""
    name = shown(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        hint = "name another with --config or MEMORIA_CONFIG"
        raise ConfigError(Problem(f"no configuration file at {name}", hint=hint)) from error
    except IsADirectoryError as error:
        hint = f"name the file in it: {name}/memoria.yaml"
        raise ConfigError(Problem(f"{name} is a folder", hint=hint)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem("this is not UTF-8 text", (f"{name}:{line}",))) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(Problem(f"cannot read {name}: {reason}")) from error
