"""A model's configuration and headers from the Hugging Face hub, by metadata calls: no weight is fetched.

Needs the optional package `huggingface_hub`, which brings the hub's own rules for tokens and mirrors. It
reads the daemon's environment when it is imported, so what the engine's own sets is given with every call.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from memoria.config.paths import hub_cache
from memoria.errors import Problem, UnavailableError
from memoria.plan.checkpoint.lengths import SENTENCE, TOKENIZER, encoder_length, tokenizer_length
from memoria.plan.checkpoint.model_files import BITS, Choice, ModelFiles, Tensor


def ask_hub(model: str, environ: Mapping[str, str], choice: Choice) -> ModelFiles:
    """Raises `UnavailableError` where the package is not there, or the hub does not answer or may not be
    asked (`HF_HUB_OFFLINE`)."""
    if (environ.get("HF_HUB_OFFLINE") or "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UnavailableError(
            Problem(
                f"model `{model}` is not in the local cache, and the hub may not be asked",
                (),
                "unset HF_HUB_OFFLINE",
            )
        )
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
    endpoint, token = environ.get("HF_ENDPOINT") or None, environ.get("HF_TOKEN") or None
    api = hub.HfApi(endpoint=endpoint, token=token)

    def fetch(name: str) -> Any:
        cache = str(hub_cache(environ))
        path = api.hf_hub_download(model, name, revision=choice.revision, cache_dir=cache)
        return json.loads(Path(path).read_text(encoding="utf-8"))

    hub.utils.disable_progress_bars()
    try:
        config = fetch("config.json")
        tokenizer, sentence = (_or_none(hub, fetch, name) for name in (TOKENIZER, SENTENCE))
        headers = _headers(hub, api, model, choice)
    except Exception as error:
        # The package's errors share no base of their own: HTTP, offline, gated and not found are all here.
        raise UnavailableError(
            Problem(
                f"the hub does not tell of `{model}`: {_first_line(error)}", (), "check the name and HF_TOKEN"
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


def _headers(hub: Any, api: Any, model: str, choice: Choice) -> Collection[Any]:
    """None for weights in another format: the configuration then has to do."""
    try:
        metadata = api.get_safetensors_metadata(model, revision=choice.revision)
    except hub.errors.NotASafetensorsRepoError:
        return ()
    return tuple(metadata.files_metadata.values())


def _or_none(hub: Any, fetch: Callable[[str], Any], name: str) -> Mapping[str, Any] | None:
    try:
        found = fetch(name)
    except hub.errors.EntryNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
