"""The configuration file as a file: where it is, its text, what control commands need of it, and edits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import yaml

from memoria.config import paths
from memoria.config.environment import read_variables, save_as_utf8
from memoria.config.interpolate import Variable
from memoria.config.model import ConfigPath
from memoria.config.report import Report
from memoria.config.yaml import Document, parse
from memoria.errors import ConfigError, Problem

SYSTEM_FILE = Path("/etc/memoria/memoria.yaml")


def find(flag: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The file to use: `flag`, MEMORIA_CONFIG, `cwd`/memoria.yaml, or /etc/memoria/memoria.yaml.

    The first two need not exist. Raises `ConfigError` if neither is given and there is no file.
    """
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
            "`memoria init MODEL` writes one; or name one with --config or MEMORIA_CONFIG; "
            "`memoria demo` needs none",
        )
    )


def _absence(path: Path) -> str | None:
    """Why there is no file at `path`; None if there is one."""
    try:
        return None if S_ISREG(path.stat().st_mode) else "not a file"
    except (FileNotFoundError, NotADirectoryError):
        return "not there"
    except OSError as error:
        return (error.strerror or "not readable").lower()


def shown(path: Path) -> str:
    """A path for messages: relative if it is within the current folder."""
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
        raise ConfigError(
            Problem("this is not UTF-8 text", (f"{name}:{line}",), save_as_utf8(error))
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "let memoria's user read it, or name another with --config or MEMORIA_CONFIG"
        raise ConfigError(Problem(f"cannot read {name}: {reason}", hint=hint)) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where the daemon of the configuration in `file` lives. `engines`: their names, if they can be read."""

    file: Path
    runtime_dir: Path
    log_dir: Path
    engines: tuple[str, ...] = ()

    @property
    def admin_socket(self) -> Path:
        return self.runtime_dir / "admin.sock"


def locate(file: Path, environ: Mapping[str, str]) -> Place:
    """Raises `ConfigError` if there is no such file, or it cannot be read.

    Validates nothing, as a daemon must stay reachable while its file is being edited. Of a file that is not
    YAML at the moment, the keys that can be read still count.
    """
    text = read_text(file)
    variables = read_variables(environ, file.with_name(".env"), "", Report())
    runtime_dir: str | None = None
    log_dir: str | None = None
    engines: tuple[str, ...] = ()
    for document in _readable_parts(text, shown(file), variables):
        runtime_dir = runtime_dir or document.text("runtime_dir")
        log_dir = log_dir or document.text("log", "dir")
        found = document.get("engines")
        engines = engines or (tuple(found) if isinstance(found, dict) else ())
    return Place(
        file,
        paths.runtime_dir(runtime_dir, file, environ)[0],
        paths.log_dir(log_dir, file, environ)[0],
        engines,
    )


def _readable_parts(text: str, name: str, variables: Mapping[str, Variable]) -> Iterator[Document]:
    """The whole file, or each of its top-level keys that is YAML by itself."""
    try:
        yield parse(text, name, variables, Report())
    except ConfigError:
        parts = [""]
        for line in text.splitlines(keepends=True):
            if line[0] in " \t#\r\n":
                parts[-1] += line
            else:
                parts.append(line)
        for part in parts:
            try:
                yield parse(part, name, variables, Report())
            except ConfigError:
                continue


def rewrite(path: Path, values: Mapping[ConfigPath, str]) -> None:
    """Replaces scalars by their keys, and leaves every other character as it is.

    The file is replaced atomically: readers see the old one or the new one. Raises `ConfigError` if a value
    cannot be replaced (a variable, an alias) or the file cannot be written.
    """
    text = path.read_bytes().decode("utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    spans = sorted((_span(root, key, text, path), value) for key, value in values.items())
    for (start, end), value in reversed(spans):
        text = text[:start] + value + text[end:]
    _replace(path, text)


def _span(root: yaml.Node | None, key: ConfigPath, text: str, path: Path) -> tuple[int, int]:
    """The indices in `text` where a value begins and ends."""
    node = root
    for name in key:
        children = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for written, value in children if written.value == name), None)
    dotted = ".".join(key[1:])
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(
            Problem(f"{dotted} does not stand in {shown(path)} itself", (), "write it there first, as `auto`")
        )
    start, end = node.start_mark.index, node.end_mark.index
    if "$" in text[start:end]:
        raise ConfigError(
            Problem(
                f"{dotted} comes out of a variable: {text[start:end]}",
                (f"{shown(path)}:{node.start_mark.line + 1}",),
                "write the fraction into the variable, or `auto` into the file",
            )
        )
    return start, end


def _replace(path: Path, text: str) -> None:
    target = path.resolve()
    try:
        mode = target.stat().st_mode
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=target.parent, prefix=f".{target.name}.", delete=False
        ) as file:
            file.write(text)
        os.chmod(file.name, mode)  # noqa: PTH101 (a name, not a path, is what the file knows)
        os.replace(file.name, target)  # noqa: PTH105
    except OSError as error:
        hint = "write the fractions of `memoria plan` into it yourself, or let this user write there"
        raise ConfigError(Problem(f"cannot write {shown(path)}: {error.strerror}", hint=hint)) from error
