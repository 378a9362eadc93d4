"""Where each effective value comes from: what `memoria config` shows."""

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
from memoria.config.schema import SECTIONS, Engine, File
from memoria.text import GIB

SECRET = "***"


@dataclass(frozen=True, slots=True)
class Setting:
    """`source` is "memoria.yaml:12", "environment HTTP_TIMEOUT", ".env:3 HTTP_TIMEOUT" or "default"."""

    key: str
    value: str
    source: str


def explain(path: Path, environ: Mapping[str, str]) -> list[Setting]:
    """Every value in force, vLLM's own defaults left out, secrets as `SECRET`. Raises as `load` does."""
    loaded = read(path, environ)
    _, runtime_source = paths.runtime_dir(loaded.file.runtime_dir, path, environ)
    _, log_source = paths.log_dir(loaded.file.log.dir, path, environ)
    computed = {("runtime_dir",): runtime_source, ("log", "dir"): log_source}
    return [
        Setting(key_name(key), _shown(key, value, loaded), _source(key, computed.get(key), loaded))
        for key, value in _values(loaded)
    ]


def _values(loaded: Loaded) -> Iterator[tuple[ConfigPath, Any]]:
    config, file = loaded.config, loaded.file
    for name in File.model_fields:
        if name in SECTIONS:
            for key, value in getattr(file, name):
                if (name, key) == ("log", "dir"):
                    yield (name, key), config.logging.dir
                elif value is not None:
                    yield (name, key), value
        elif name == "runtime_dir":
            yield (name,), config.runtime_dir
        elif name != "engines" and getattr(file, name) is not None:
            yield (name,), getattr(file, name)
    for name in file.engines:
        yield from _engine_values(name, loaded)


def _engine_values(name: str, loaded: Loaded) -> Iterator[tuple[ConfigPath, Any]]:
    engine, built = loaded.file.engines[name], loaded.config.engine(name)
    for key in Engine.model_fields:
        value = getattr(engine, key)
        if key in ("args", "env"):
            yield from ((("engines", name, key, entry), value[entry]) for entry in value)
        elif key == "want":
            yield from ((("engines", name, key, entry), wish) for entry, wish in value if wish is not None)
        elif key == "filters":
            yield from ((("engines", name, key, entry), changes) for entry, changes in value if changes)
        elif key in ("served_model_name", "gpu", "max_requests"):
            yield ("engines", name, key), getattr(built, key)
        elif value is not None:
            yield ("engines", name, key), value


def _shown(key: ConfigPath, value: Any, loaded: Loaded) -> str:
    in_env = len(key) == 4 and key[2] == "env"
    variables = _variables(key, loaded)
    if (in_env and looks_secret(key[3])) or any(looks_secret(name) for name in variables):
        return SECRET
    if key[2:] == ("gpu_memory",):
        return _exact_gib(value)
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
