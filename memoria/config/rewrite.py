"""Puts other values into a configuration file, and leaves every other character of it as it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from memoria.config.file import shown
from memoria.config.model import ConfigPath
from memoria.errors import ConfigError, Problem


def rewrite(path: Path, values: Mapping[ConfigPath, str]) -> None:
    """Replaces scalars, each by its key's path, in one step: a reader sees the old file or the new one.
    Raises `ConfigError` where one cannot be replaced (a variable, an alias) or the file cannot be written."""
    text = path.read_bytes().decode("utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    spans = sorted((_span(root, key, text, path), value) for key, value in values.items())
    for (start, end), value in reversed(spans):
        text = text[:start] + value + text[end:]
    _replace(path, text)


def _span(root: yaml.Node | None, key: ConfigPath, text: str, path: Path) -> tuple[int, int]:
    """Where the value begins and ends in the text."""
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
