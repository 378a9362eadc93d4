"""A model's configuration and headers from the Hugging Face hub, by metadata calls: no weight is fetched.

`huggingface_hub` reads the daemon's environment when it is imported, so the engine's own settings are passed
with every call.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors
from huggingface_hub.utils.tqdm import disable_progress_bars

from memoria.config.paths import hub_cache
from memoria.errors import Problem, UnavailableError
from memoria.plan.checkpoint.model_files import (
    BITS,
    SENTENCE,
    TOKENIZER,
    Choice,
    ModelFiles,
    Tensor,
    encoder_length,
    tokenizer_length,
)


def fetch_from_hub(model: str, environ: Mapping[str, str], choice: Choice) -> ModelFiles:
    """Raises `UnavailableError` if the hub does not answer, or HF_HUB_OFFLINE is set."""
    if (environ.get("HF_HUB_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UnavailableError(
            Problem(
                f"model `{model}` is not in the local cache, and HF_HUB_OFFLINE is set",
                (),
                "unset HF_HUB_OFFLINE",
            )
        )
    api = HfApi(endpoint=environ.get("HF_ENDPOINT") or None, token=environ.get("HF_TOKEN") or None)

    def fetch(name: str) -> Any:
        path = api.hf_hub_download(model, name, revision=choice.revision, cache_dir=hub_cache(environ))
        return json.loads(Path(path).read_text(encoding="utf-8"))

    def fetch_optional(name: str) -> Mapping[str, Any] | None:
        try:
            found = fetch(name)
        except errors.EntryNotFoundError:
            return None
        return found if isinstance(found, dict) else None

    disable_progress_bars()
    try:
        config = fetch("config.json")
        tokenizer, sentence = fetch_optional(TOKENIZER), fetch_optional(SENTENCE)
        headers = _headers(api, model, choice)
    except Exception as error:
        # The package's errors have no common base: HTTP, offline, gated and not found are all here.
        raise UnavailableError(
            Problem(
                f"the hub has no metadata of `{model}`: {_first_line(error)}",
                (),
                "check the name and HF_TOKEN",
            )
        ) from error
    tensors = tuple(
        Tensor(name, info.dtype, tuple(info.shape))
        for file in headers
        for name, info in file.tensors.items()
        if info.dtype in BITS
    )
    return ModelFiles(
        name=model,
        source="the hub",
        config=config,
        tensors=tensors,
        tokenizer_length=tokenizer_length(tokenizer),
        encoder_length=encoder_length(sentence),
    )


def _headers(api: HfApi, model: str, choice: Choice) -> Collection[Any]:
    """Empty for weights in another format: the configuration must then be enough."""
    try:
        metadata = api.get_safetensors_metadata(model, revision=choice.revision)
    except errors.NotASafetensorsRepoError:
        return ()
    return tuple(metadata.files_metadata.values())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
