"""Where a configuration's daemon lives: what the commands that ask it need of the file, and nothing more.

A daemon goes on while somebody edits its file. So nothing is validated here, and of a file that is no YAML at
the moment, the keys that can be read still count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memoria.config import paths
from memoria.config.environment import read_variables
from memoria.config.file import read_text, shown
from memoria.config.interpolate import Variable
from memoria.config.report import Report
from memoria.config.yaml import Document, Node, Scalar, parse
from memoria.errors import ConfigError

# One key at the top of the file, with the lines below that belong to it.
_BLOCK = re.compile(r"^(?:runtime_dir|log|engines)[ \t]*:.*(?:\n(?:[ \t#].*)?)*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """Of the configuration in `file`. `engines`: their names, as far as the file can be read."""

    file: Path
    runtime_dir: Path
    log_dir: Path
    engines: tuple[str, ...] = ()

    @property
    def admin_socket(self) -> Path:
        return self.runtime_dir / "admin.sock"


def locate(file: Path, environ: Mapping[str, str]) -> Place:
    """Raises `ConfigError` where there is no such file, or it may not be read."""
    text = read_text(file)
    variables = read_variables(environ, file.with_name(".env"), "", Report())
    runtime_dir: str | None = None
    log_dir: str | None = None
    engines: tuple[str, ...] = ()
    for document in _documents(text, shown(file), variables):
        runtime_dir = runtime_dir or _text(document.data, "runtime_dir")
        log_dir = log_dir or _text(document.data, "log", "dir")
        engines = engines or _keys(document.get("engines"))
    return Place(
        file,
        paths.runtime_dir(runtime_dir, file, environ)[0],
        paths.log_dir(log_dir, file, environ)[0],
        engines,
    )


def _documents(text: str, name: str, variables: Mapping[str, Variable]) -> Iterator[Document]:
    """The whole, or what can be read of it."""
    try:
        yield parse(text, name, variables, Report())
    except ConfigError:
        for block in _BLOCK.findall(text):
            try:
                yield parse(block, name, variables, Report())
            except ConfigError:
                continue


def _text(node: Node, *path: str) -> str | None:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return str(node) if isinstance(node, Scalar) else None


def _keys(node: Node) -> tuple[str, ...]:
    return tuple(node) if isinstance(node, dict) else ()
