"""Which repositories and files of the hub an engine loads, and whether they are here already.

As vLLM 0.32 and 0.33 do: the first pattern that the repository has anything for, and of several safetensors
files those that the index names (vllm/model_executor/model_loader/default_loader.py and weight_utils.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from memoria.config.paths import hub_cache

INDEX = "model.safetensors.index.json"
# By `load_format`, in the order in which vLLM looks for them. Loaders that are not here read from elsewhere,
# or choose files of their own: their engines fetch within their start.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "auto": ("*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "bitsandbytes": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "instanttensor": ("*.safetensors",),
    "mistral": ("consolidated*.safetensors",),
    "pt": ("*.pt",),
    "npcache": ("*.bin",),
    "dummy": (),
}
MISTRAL = WEIGHTS["mistral"][0]
# Configuration, tokenizer, chat template, and code for `trust_remote_code`.
_SMALL = frozenset({".json", ".txt", ".model", ".py", ".jinja", ".tiktoken", ".vocab", ".yaml"})
_OTHER_FORMATS = ("original/", "onnx/", "openvino/", "coreml/", "gguf/", "metal/", "assets/", ".")
# A layer on top of an embedder, which vLLM applies (sentence-transformers' modules.json).
_DENSE = re.compile(r"\d+_\w+/(model\.safetensors|pytorch_model\.bin)")
# Not a URL, not `repository:quantisation`: vLLM knows more forms than the hub does.
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Repository:
    """What an engine loads of one. `weights` are patterns in vLLM's order, none for a tokenizer; `cache` is a
    folder as HF_HUB_CACHE names it."""

    model: str
    revision: str | None
    weights: tuple[str, ...]
    cache: str

    @property
    def folder(self) -> Path:
        return Path(self.cache) / f"models--{self.model.replace('/', '--')}"


def repositories(model: str, args: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Repository, ...]:
    """All that an engine loads from the hub: its model, its draft model, and a tokenizer of their own; empty
    if it loads by other means. `environ` is the engine's."""
    weights = WEIGHTS.get(str(args.get("load_format") or "auto"))
    if weights is None or is_set(environ.get("VLLM_USE_MODELSCOPE")):
        return ()
    caches = [str(hub_cache(environ))]
    if own := args.get("download_dir"):  # of weights and tokenizer; transformers reads config.json elsewhere
        caches = [str(Path(str(own)).expanduser()), *caches]

    def found(name: Any, revision: Any, patterns: tuple[str, ...]) -> Iterable[Repository]:
        if isinstance(name, str) and HUB_NAME.fullmatch(name) and not Path(name).exists():
            for number, cache in enumerate(caches):
                yield Repository(name, str(revision) if revision else None, () if number else patterns, cache)

    draft = args.get("speculative_config")
    draft = _object(draft) if isinstance(draft, str) else draft
    draft = draft if isinstance(draft, dict) else {}
    return tuple(
        dict.fromkeys(
            (
                *found(model, args.get("revision"), weights),
                *found(args.get("tokenizer"), args.get("tokenizer_revision"), ()),
                *found(draft.get("model"), draft.get("revision"), weights),
            )
        )
    )


def files_to_load(
    names: Collection[str], weights: tuple[str, ...], weight_map: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Of a repository's files: the small ones, and the weights. `weight_map` is the index's."""
    small = [
        name
        for name in sorted(names)
        if PurePosixPath(name).suffix in _SMALL and not name.startswith(_OTHER_FORMATS)
    ]
    if not weights:
        return small, []
    large = [name for name in sorted(names) if _DENSE.fullmatch(name)]
    if weights == WEIGHTS["auto"] and any(fnmatchcase(name, MISTRAL) for name in names):
        weights = (MISTRAL,)
    if weight_map and "*.safetensors" in weights:
        return small, [*large, *sorted(set(weight_map.values()) & set(names))]
    for pattern in weights:
        if chosen := [name for name in sorted(names) if "/" not in name and fnmatchcase(name, pattern)]:
            return small, [*large, *chosen]
    return small, []


def is_here(repository: Repository) -> bool:
    """Whether the cache has all that an engine loads, as far as can be known without the hub."""
    folder = _snapshot(repository)
    if folder is None:
        return False
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not repository.weights:
        return any(name.endswith(".json") for name in names)
    weight_map = read_weight_map(folder / INDEX)
    if weight_map and "*.safetensors" in repository.weights:
        return set(weight_map.values()) <= set(names)
    # Without an index nothing says how many there are: what was cut leaves a part behind.
    cut = any((repository.folder / "blobs").glob("*.incomplete"))
    return not cut and bool(files_to_load(names, repository.weights)[1])


def _snapshot(repository: Repository) -> Path | None:
    revision = repository.revision or "main"
    snapshots = repository.folder / "snapshots"
    try:
        commit = (repository.folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    folder = snapshots / commit
    return folder if commit and folder.is_dir() else None


def read_weight_map(index: Path) -> dict[str, str] | None:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()) else None


def is_set(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


def is_offline(environ: Mapping[str, str]) -> bool:
    return is_set(environ.get("HF_HUB_OFFLINE")) or is_set(environ.get("TRANSFORMERS_OFFLINE"))


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
