"""Is the model there? Asked before anything is spawned, so that a typing error costs seconds, not a start.

A path is looked at. A hub name is looked for in the local cache, then (unless HF_HUB_OFFLINE is set) asked
for with one metadata call, no weights. What cannot be known in time is left for vLLM to find out.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.errors import Problem

PATIENCE = 2.0  # seconds
# Not a URL, not `repository:quantisation`: vLLM knows more forms than the hub does.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_problems(config: Config, environ: Mapping[str, str]) -> list[Problem]:
    """Every model that is certainly missing, gated or misnamed. Blocks for `PATIENCE` seconds at most:
    resolving a name has no timeout of its own, so a thread that takes longer is left behind."""
    found: dict[str, Problem | None] = {}

    def look(engine: EngineConfig) -> None:
        found[engine.name] = _problem(config, engine, {**environ, **engine.env})

    deadline = time.monotonic() + PATIENCE
    threads = [threading.Thread(target=look, args=(engine,), daemon=True) for engine in config.engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    problems = (found.get(engine.name) for engine in config.engines)
    return [problem for problem in problems if problem is not None]


def _problem(config: Config, engine: EngineConfig, environ: Mapping[str, str]) -> Problem | None:
    mark = config.where("engines", engine.name, "model")
    where = (f"{mark}  {engine.name}.model",) if mark else (f"{engine.name}.model",)
    if engine.model.startswith("/"):
        try:
            return _path_problem(Path(engine.model), where)
        except OSError as error:
            return Problem(f"model cannot be read: {error.filename}: {error.strerror}", where)
    elsewhere = not HUB_NAME.fullmatch(engine.model) or _is_set(environ.get("VLLM_USE_MODELSCOPE"))
    if elsewhere or _cached(engine.model, environ):
        return None
    if _is_set(environ.get("HF_HUB_OFFLINE")) or _is_set(environ.get("TRANSFORMERS_OFFLINE")):
        return Problem(
            f"model `{engine.model}` is not in the local cache, and the hub may not be asked",
            where,
            "unset HF_HUB_OFFLINE, or download it first; a directory is written as a path (`./model`)",
        )
    # HTTP and TLS take longer to import than all the rest of a check
    from memoria.supervisor.hub import hub_problem  # noqa: PLC0415

    return hub_problem(engine.model, where, environ, PATIENCE)


def _path_problem(path: Path, where: tuple[str, ...]) -> Problem | None:
    if path.is_file() and path.suffix == ".gguf":
        return None
    if not path.is_dir():
        return Problem(f"model not found: {path} is not a directory", where, "check the path")
    if not ((path / "config.json").is_file() or (path / "params.json").is_file()):
        return Problem(
            f"no model in {path}: it has no config.json", where, "name the directory that holds it"
        )
    return None


def _cached(model: str, environ: Mapping[str, str]) -> bool:
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    return any((hub / f"models--{model.replace('/', '--')}").glob("snapshots/*/config.json"))


def _is_set(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables
