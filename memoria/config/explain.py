"""Every effective value with its source, for `memoria config`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from memoria.config import paths
from memoria.config.environment import looks_secret
from memoria.config.load import Loaded, read
from memoria.config.model import ConfigPath
from memoria.config.report import key_name
from memoria.config.values import Section, keys
from memoria.text import GIB

SECRET = "***"


@dataclass(frozen=True, slots=True)
class Setting:
    """`source` is "memoria.yaml:12", "environment HTTP_TIMEOUT", ".env:3 HTTP_TIMEOUT" or "default"."""

    key: str
    value: str
    source: str


def explain(path: Path, environ: Mapping[str, str]) -> list[Setting]:
    """Every value in force except vLLM's own defaults, secrets as `SECRET`. Raises as `load` does."""
    loaded = read(path, environ)
    document = loaded.document
    _, runtime_source = paths.runtime_dir(document.text("runtime_dir"), path, environ)
    _, log_source = paths.log_dir(document.text("log", "dir"), path, environ)
    sources = {("runtime_dir",): runtime_source, ("log", "dir"): log_source}
    computed = _computed(loaded)
    return [
        Setting(key_name(key), _shown(key, shown, loaded), _source(key, sources.get(key), loaded))
        for key, value in _leaves((), loaded.file)
        if (shown := computed.get(key, value)) is not None
        and (shown not in ((), {}) or document.get(*key) is not None)
    ]


def _computed(loaded: Loaded) -> dict[ConfigPath, Any]:
    """Values that depend on more than their own key."""
    config = loaded.config
    computed: dict[ConfigPath, Any] = {
        ("runtime_dir",): config.runtime_dir,
        ("log", "dir"): config.logging.dir,
    }
    for engine in config.engines:
        path = ("engines", engine.name)
        for name in ("served_model_name", "gpu", "max_requests"):
            computed[(*path, name)] = getattr(engine, name)
        if not engine.gpu_memory_utilization:
            fraction = (*path, "gpu_memory_utilization")
            computed[fraction] = loaded.document.text(*fraction)  # `auto`, or unset
    return computed


def _leaves(path: ConfigPath, value: Any) -> Iterator[tuple[ConfigPath, Any]]:
    if isinstance(value, Section):
        for key, field in keys(type(value)).items():
            yield from _leaves((*path, key), getattr(value, field.name))
    elif path == ("engines",) or path[2:] in (("args",), ("env",)):
        for key, entry in value.items():
            yield from _leaves((*path, key), entry)
    else:
        yield path, value


def _shown(key: ConfigPath, value: Any, loaded: Loaded) -> str:
    in_env = len(key) == 4 and key[2] == "env"
    variables = _variables(key, loaded)
    if (in_env and looks_secret(key[3])) or any(looks_secret(name) for name in variables):
        return SECRET
    if key[2:] == ("gpu_memory",):
        return _exact_gib(value)
    if key[-1].endswith("_mb"):
        return str(value >> 20)
    if isinstance(value, (bool, dict)):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _exact_gib(size_bytes: int) -> str:
    gib = Decimal(size_bytes) / GIB
    return f"{gib.normalize():f}GiB" if gib == round(gib, 3) else f"{size_bytes} bytes"


def _source(key: ConfigPath, computed: str | None, loaded: Loaded) -> str:
    if computed not in (None, "file"):
        return str(computed)
    if loaded.document.get(*key) is None:
        return "default"
    if variables := _variables(key, loaded):
        return ", ".join(f"{source} {name}" for name, source in variables.items())
    mark = loaded.document.marks.get(key)
    return f"{mark.file}:{mark.line}" if mark else "default"


def _variables(key: ConfigPath, loaded: Loaded) -> dict[str, str]:
    """The names of the variables in a value, or in the parts of it, each with its source."""
    return {
        variable.name: variable.source
        for path, variables in loaded.document.variables.items()
        if path[: len(key)] == key
        for variable in variables
    }
