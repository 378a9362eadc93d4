"""Finds a model's files (a folder, the hub's local cache, or the hub itself) and reads what they say.

Nothing is downloaded but configuration and headers, and that only where the caller allows it and the package
`huggingface_hub` is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memoria.checkpoint.headers import HeaderError, read_header
from memoria.checkpoint.model_files import ModelFiles, Tensor
from memoria.config.paths import hub_cache
from memoria.errors import Problem, UnavailableError

INDEX = "model.safetensors.index.json"


def read_model(model: str, environ: Mapping[str, str], *, may_ask_hub: bool = False) -> ModelFiles:
    """Raises `UnavailableError`, saying what is missing and how to get it."""
    folder = Path(model) if model.startswith("/") else cached_snapshot(model, environ)
    if folder is not None and (folder / "config.json").is_file():
        return read_folder(model, folder)
    if model.startswith("/"):
        raise UnavailableError(
            Problem(f"no model in {model}: it has no config.json", (), "name the folder that holds it")
        )
    if may_ask_hub:
        from memoria.checkpoint.hub import ask_hub  # noqa: PLC0415 (imports HTTP and TLS)

        return ask_hub(model, environ)
    raise UnavailableError(
        Problem(
            f"model `{model}` is not in the local cache, so its size is not known",
            (),
            f"download its configuration: `hf download {model} config.json {INDEX}`, "
            "or ask the hub: `memoria plan --hub`",
        )
    )


def cached_snapshot(model: str, environ: Mapping[str, str]) -> Path | None:
    """The folder of the revision `main` in the hub's cache, else the newest one with a config.json
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    repository = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    try:
        main = repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
        if (main / "config.json").is_file():
            return main
    except (OSError, UnicodeDecodeError):
        pass
    found = sorted(repository.glob("snapshots/*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def read_folder(model: str, folder: Path) -> ModelFiles:
    """Raises `UnavailableError` where the configuration or a header is damaged. Weights that are not there
    are no error here: a plan can be made from the configuration alone."""
    config = _json(folder / "config.json")
    if config is None:
        raise UnavailableError(Problem(f"{folder}/config.json is not a JSON object", (), "fetch it again"))
    index = _json(folder / INDEX) or {}
    sentence = _json(folder / "sentence_bert_config.json") or {}
    tokenizer = _json(folder / "tokenizer_config.json") or {}
    return ModelFiles(
        name=model,
        source=str(folder),
        config=config,
        tensors=_tensors(folder, index),
        index_bytes=_whole(_mapping(index.get("metadata")).get("total_size")),
        tokenizer_length=_whole(tokenizer.get("model_max_length")),
        encoder_length=_whole(sentence.get("max_seq_length")),
    )


def _tensors(folder: Path, index: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Of the files that the index names, else of all; none where one of them is not there."""
    named = {name for name in _mapping(index.get("weight_map")).values() if isinstance(name, str)}
    files = [folder / Path(name).name for name in sorted(named)]
    if not files:
        files = sorted(
            path for path in folder.glob("*.safetensors") if path.name != "consolidated.safetensors"
        )
    if not all(path.is_file() for path in files):
        return ()
    try:
        return tuple(tensor for path in files for tensor in read_header(path))
    except (HeaderError, OSError) as error:
        raise UnavailableError(
            Problem(f"the weights in {folder} cannot be read: {error}", (), "download the model again")
        ) from error


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    # A tokenizer without a limit says 1e30.
    return int(value) if isinstance(value, int | float) and 0 < value < 10**15 else None
