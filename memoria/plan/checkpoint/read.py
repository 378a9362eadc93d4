"""Finds a model's files (a folder, the hub's local cache, or the hub itself) and reads what they say.

Nothing is downloaded but configuration and headers, and that only where the caller allows it and the package
`huggingface_hub` is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memoria.config.paths import hub_cache
from memoria.errors import Problem, UnavailableError
from memoria.plan.checkpoint.headers import HeaderError, read_header
from memoria.plan.checkpoint.lengths import SENTENCE, TOKENIZER, encoder_length, tokenizer_length, whole
from memoria.plan.checkpoint.model_files import Choice, ModelFiles, Tensor

INDEX = "model.safetensors.index.json"
_ANY = Choice()


def read_model(
    model: str, environ: Mapping[str, str], choice: Choice = _ANY, *, may_ask_hub: bool = False
) -> ModelFiles:
    """`environ` is the engine's. With `may_ask_hub` the hub is asked for what the local cache lacks. Raises
    `UnavailableError`, saying what is missing and how to get it."""
    folder = find_folder(model, environ, choice)
    if folder is not None and (folder / "config.json").is_file():
        files = read_folder(model, folder, weights_folder(model, folder, choice))
        if files.tensors or not may_ask_hub or model.startswith("/"):
            return _overridden(files, choice)
    if model.startswith("/"):
        raise UnavailableError(
            Problem(f"no model in {model}: it has no config.json", (), "name the folder that holds it")
        )
    if may_ask_hub:
        from memoria.plan.checkpoint.hub import ask_hub  # noqa: PLC0415 (imports HTTP and TLS)

        return _overridden(ask_hub(model, environ, choice), choice)
    of_revision = f" --revision {choice.revision}" if choice.revision else ""
    raise UnavailableError(
        Problem(
            f"model `{model}` is not in the local cache, so its size is not known",
            (),
            f"download its configuration: `hf download {model} config.json {INDEX}{of_revision}`, "
            "or ask the hub: `memoria plan --hub`",
        )
    )


def find_folder(model: str, environ: Mapping[str, str], choice: Choice = _ANY) -> Path | None:
    """Where a model's configuration is: the path itself, the hub's cache, or the engine's own cache."""
    if model.startswith("/"):
        return Path(model)
    return cached_snapshot(model, hub_cache(environ), choice.revision) or _in_download_dir(model, choice)


def cached_snapshot(model: str, cache: Path, revision: str | None = None) -> Path | None:
    """The folder of `revision` in a hub cache; without one that of `main`, else the newest with a config.json
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    repository = cache / f"models--{model.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        commit = (repository / "refs" / (revision or "main")).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision or ""
    if commit and (snapshots / commit / "config.json").is_file():
        return snapshots / commit
    if revision is not None:
        return None
    found = sorted(snapshots.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def _in_download_dir(model: str, choice: Choice) -> Path | None:
    if choice.download_dir is None:
        return None
    return cached_snapshot(model, Path(choice.download_dir).expanduser(), choice.revision)


def weights_folder(model: str, folder: Path, choice: Choice) -> Path:
    """The engine's own cache where it holds weights, else that of the configuration."""
    own = None if model.startswith("/") else _in_download_dir(model, choice)
    return own if own is not None and any(own.glob("*.safetensors")) else folder


def read_folder(model: str, folder: Path, weights: Path | None = None) -> ModelFiles:
    """Raises `UnavailableError` where the configuration or a header is damaged. Weights that are not there
    are no error here: a plan can be made from the configuration alone. `weights`: where those are, if not in
    `folder`."""
    config = _json(folder / "config.json")
    if config is None:
        raise UnavailableError(Problem(f"{folder}/config.json is not a JSON object", (), "fetch it again"))
    kept = weights or folder
    index = _json(kept / INDEX) or _json(folder / INDEX) or {}
    named, missing = _weight_files(kept, index)
    return ModelFiles(
        name=model,
        source=str(folder),
        config=config,
        tensors=() if missing else _tensors(kept, named),
        missing=tuple(missing) if len(missing) < len(named) else (),
        index_bytes=whole(mapping(index.get("metadata")).get("total_size")),
        tokenizer_length=tokenizer_length(_json(folder / TOKENIZER)),
        encoder_length=encoder_length(_json(folder / SENTENCE)),
    )


def _weight_files(folder: Path, index: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """The files that the index names, else all; and the names of those that are not there."""
    named = {name for name in mapping(index.get("weight_map")).values() if isinstance(name, str)}
    files = [folder / Path(name).name for name in sorted(named)]
    if not files:
        files = sorted(
            path for path in folder.glob("*.safetensors") if path.name != "consolidated.safetensors"
        )
    return files, [path.name for path in files if not path.is_file()]


def _tensors(folder: Path, files: list[Path]) -> tuple[Tensor, ...]:
    try:
        return tuple(tensor for path in files for tensor in read_header(path))
    except (HeaderError, OSError) as error:
        raise UnavailableError(
            Problem(f"the weights in {folder} cannot be read: {error}", (), "download the model again")
        ) from error


def _overridden(files: ModelFiles, choice: Choice) -> ModelFiles:
    return replace(files, config=_merged(files.config, choice.overrides)) if choice.overrides else files


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """As vLLM merges them: parts of parts, too."""
    return {
        **config,
        **{
            key: _merged(mapping(config.get(key)), value) if isinstance(value, dict) else value
            for key, value in overrides.items()
        },
    }


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
