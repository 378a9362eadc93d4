"""A model's configuration and headers from the Hugging Face hub, by its metadata calls: no weight is fetched.

Needs the optional package `huggingface_hub`, which brings the hub's own rules for tokens, mirrors and offline
work.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memoria.checkpoint.model_files import BITS, ModelFiles, Tensor
from memoria.errors import Problem, UnavailableError


def ask_hub(model: str, environ: Mapping[str, str]) -> ModelFiles:
    """Raises `UnavailableError` where the package is not there or the hub does not answer."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UnavailableError(
            Problem(
                f"model `{model}` is not in the local cache, and `huggingface_hub` is not installed",
                (),
                f"install it (`pip install 'memoria[hub]'`), or run `hf download {model} config.json`",
            )
        ) from error
    token = environ.get("HF_TOKEN") or None
    try:
        config = json.loads(Path(hub.hf_hub_download(model, "config.json", token=token)).read_text())
        metadata = hub.get_safetensors_metadata(model, token=token)
    except Exception as error:
        # The package's errors share no base of their own: HTTP, offline, gated and not found are all here.
        raise UnavailableError(
            Problem(
                f"the hub does not tell of `{model}`: {_first_line(error)}", (), "check the name and HF_TOKEN"
            )
        ) from error
    tensors = tuple(
        Tensor(name, info.dtype, tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
        if info.dtype in BITS
    )
    return ModelFiles(name=model, source="the hub", config=config, tensors=tensors)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
