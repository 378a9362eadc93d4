"""The configuration file: where it is looked for, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG

from memoria.config.environment import SAVE_AS_UTF8
from memoria.errors import ConfigError, Problem

SYSTEM_FILE = Path("/etc/memoria/memoria.yaml")


def find(flag: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The file to use: `flag`, MEMORIA_CONFIG, `cwd`/memoria.yaml, /etc/memoria/memoria.yaml.

    The first two are taken at their word. Raises `ConfigError` when nothing is there."""
    if flag is not None:
        return cwd / flag
    if named := environ.get("MEMORIA_CONFIG"):
        return cwd / named
    absent = {}
    for candidate in (cwd / "memoria.yaml", SYSTEM_FILE):
        reason = _absence(candidate)
        if reason is None:
            return candidate
        absent[candidate] = reason
    raise ConfigError(
        Problem(
            "no configuration file",
            tuple(f"{shown(candidate)}  {reason}" for candidate, reason in absent.items()),
            "name one with --config or MEMORIA_CONFIG; `memoria demo` needs none",
        )
    )


def _absence(path: Path) -> str | None:
    """Why there is no file at `path`; None where there is one."""
    try:
        return None if S_ISREG(path.stat().st_mode) else "not a file"
    except (FileNotFoundError, NotADirectoryError):
        return "not there"
    except OSError as error:
        return (error.strerror or "not readable").lower()


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
        raise ConfigError(Problem("this is not UTF-8 text", (f"{name}:{line}",), SAVE_AS_UTF8)) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "let memoria's user read it, or name another with --config or MEMORIA_CONFIG"
        raise ConfigError(Problem(f"cannot read {name}: {reason}", hint=hint)) from error
