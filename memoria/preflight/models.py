"""Checks before anything is spawned that each model exists, so that a typo costs seconds, not a start.

A path must be there. A hub name must be in the local cache, or (unless HF_HUB_OFFLINE is set) on the hub: one
metadata call, no weights. What cannot be known in time is a warning, and left for vLLM to find out.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memoria.config.model import Config, EngineConfig
from memoria.config.paths import hub_cache
from memoria.errors import Problem

PATIENCE = 2.0  # seconds
# Not a URL, not `repository:quantisation`: vLLM knows more forms than the hub does.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Looked:
    """Models that are certainly missing, gated or misnamed, and those that could not be checked."""

    problems: tuple[Problem, ...]
    unknown: tuple[Problem, ...]


class _UnknownError(Exception):
    """The model could not be checked; the text is the reason."""


def look_for_models(config: Config, environ: Mapping[str, str]) -> Looked:
    """In the file's order. Blocks for at most `PATIENCE` seconds: name resolution has no timeout of its own,
    so a thread that takes longer is abandoned."""
    problems: dict[str, Problem | None] = {}
    unknown = {engine.name: f"it has not answered within {PATIENCE:g} s" for engine in config.engines}

    def look(engine: EngineConfig) -> None:
        try:
            problems[engine.name] = _problem(engine, _where(config, engine), {**environ, **engine.env})
        except _UnknownError as error:
            unknown[engine.name] = str(error)

    deadline = time.monotonic() + PATIENCE
    threads = [threading.Thread(target=look, args=(engine,), daemon=True) for engine in config.engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    found = dict(problems)  # an abandoned thread may still write
    return Looked(
        tuple(problem for engine in config.engines if (problem := found.get(engine.name)) is not None),
        tuple(
            Problem(
                f"cannot tell whether the hub has `{engine.model}`: {unknown[engine.name]}",
                _where(config, engine),
                "it is not in the local cache, so its engine will have to download it; "
                "check the network, HF_ENDPOINT and the proxies",
            )
            for engine in config.engines
            if engine.name not in found
        ),
    )


def _where(config: Config, engine: EngineConfig) -> tuple[str, ...]:
    mark = config.where("engines", engine.name, "model")
    return (f"{mark}  {engine.name}.model",) if mark else (f"{engine.name}.model",)


def _problem(engine: EngineConfig, where: tuple[str, ...], environ: Mapping[str, str]) -> Problem | None:
    """Raises `_UnknownError`."""
    try:
        if engine.model.startswith("/"):
            return _path_problem(Path(engine.model), where)
        elsewhere = not HUB_NAME.fullmatch(engine.model) or _is_set(environ.get("VLLM_USE_MODELSCOPE"))
        return None if elsewhere else _hub_problem(engine.model, where, environ)
    except OSError as error:
        return Problem(
            f"model cannot be read: {error.filename}: {error.strerror}",
            where,
            "let memoria's user read it; HF_HOME sets the folder of the hub's files",
        )


def _path_problem(path: Path, where: tuple[str, ...]) -> Problem | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # raises the reason, where `is_dir` is only False
    if path.is_file() and path.suffix == ".gguf":
        return None
    if not path.is_dir():
        return Problem(f"model not found: {path} is not a directory", where, "check the path")
    if not _has_config(path):
        return Problem(
            f"no model in {path}: it has no config.json", where, "name the directory that holds it"
        )
    return None


def _hub_problem(model: str, where: tuple[str, ...], environ: Mapping[str, str]) -> Problem | None:
    if _cached(model, environ):
        return None
    if _is_set(environ.get("HF_HUB_OFFLINE")) or _is_set(environ.get("TRANSFORMERS_OFFLINE")):
        return Problem(
            f"model `{model}` is not in the local cache, and HF_HUB_OFFLINE is set",
            where,
            "unset HF_HUB_OFFLINE, or download it first; a directory is written as a path (`./model`)",
        )
    # HTTP and TLS take longer to import than all the rest of a check
    from memoria.preflight.hub import HubSilentError, hub_problem  # noqa: PLC0415

    try:
        return hub_problem(model, where, environ, PATIENCE)
    except HubSilentError as error:
        raise _UnknownError(str(error)) from error


def _cached(model: str, environ: Mapping[str, str]) -> bool:
    snapshots = hub_cache(environ) / f"models--{model.replace('/', '--')}" / "snapshots"
    try:
        return any(_has_config(revision) for revision in snapshots.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "params.json"))


def _is_set(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables
