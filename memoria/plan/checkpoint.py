"""A model's files: their facts, and where they are found (a folder, the hub's local cache, the hub itself).

Facts are the configuration, tensor headers and length limits; no weight is ever read, and the hub is read
only if the caller allows it. A safetensors file begins with eight bytes of length, then JSON
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from memoria.config.paths import hub_cache
from memoria.errors import Problem, UnavailableError

# Bits of an element, by the names in a safetensors header (https://github.com/huggingface/safetensors).
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
TOKENIZER = "tokenizer_config.json"
SENTENCE = "sentence_bert_config.json"
MODULES = "modules.json"  # sentence-transformers: the model is an embedder
INDEX = "model.safetensors.index.json"
ENDLESS = 10**15  # tokens: a tokenizer without a limit says 1e30
SHIPPED = "memoria"  # where facts are from that were not read anywhere
LONGEST_HEADER = 100_000_000  # the format's own limit; a file that claims more is damaged
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        return (self.parameters * BITS[self.dtype] + 7) // 8


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of a model that an engine's flags choose (vllm/config/model.py, vllm/config/load.py).

    `revision` is a branch, a tag or a commit of a hub model; `download_dir` is a hub cache for its weights;
    `overrides` (`hf_overrides`) replace parts of config.json.
    """

    revision: str | None = None
    download_dir: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`tensors` is empty if no header could be read; `index_bytes` is then the index's size of all weights
    (`metadata.total_size`), or None, and `missing` are weights files absent from a set that is partly there.
    The lengths, in tokens, are limits of the context from files beside config.json: the tokenizer's
    `model_max_length`, and sentence-transformers' `max_seq_length`; `pools`: it has their modules. `draft` is
    the model that proposes tokens (`speculative_config`), if there is one and its files are known."""

    name: str
    source: str  # where they were found, for messages
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...] = ()
    index_bytes: int | None = None
    tokenizer_length: int | None = None
    encoder_length: int | None = None
    missing: tuple[str, ...] = ()
    pools: bool = False
    draft: ModelFiles | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.stored_bytes for tensor in self.tensors)


_ANY = Choice()


class NotCachedError(UnavailableError):
    """The hub may have the model."""


class HeaderError(ValueError):
    """A damaged or incomplete safetensors file; the text is for messages."""


def read_model(model: str, environ: Mapping[str, str], choice: Choice = _ANY) -> ModelFiles:
    """From the disk. `environ` is the engine's. Raises `NotCachedError` for a hub's model that is not here,
    and `UnavailableError` for one that cannot be read."""
    folder = find_folder(model, environ, choice)
    if folder is not None and (folder / "config.json").is_file():
        return overridden(read_folder(model, folder, weights_folder(model, folder, choice)), choice)
    if model.startswith("/"):
        raise UnavailableError(
            Problem(f"no model in {model}: it has no config.json", (), "name the folder that holds it")
        )
    raise NotCachedError(
        Problem(
            f"model `{model}` is not in the local cache, so its size is not known",
            (),
            "fetch it: `memoria pull`",
        )
    )


def find_folder(model: str, environ: Mapping[str, str], choice: Choice = _ANY) -> Path | None:
    """The folder of a model's configuration: the path itself, or in the hub's cache or the engine's own."""
    if model.startswith("/"):
        return Path(model)
    return cached_snapshot(model, hub_cache(environ), choice.revision) or _in_download_dir(model, choice)


def cached_snapshot(model: str, cache: Path, revision: str | None = None) -> Path | None:
    """The folder of `revision` in a hub cache; by default that of `main`, else the newest with a config.json
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
    """The engine's own cache if it holds weights, else the configuration's folder."""
    own = None if model.startswith("/") else _in_download_dir(model, choice)
    return own if own is not None and any(own.glob("*.safetensors")) else folder


def read_folder(model: str, folder: Path, weights: Path | None = None) -> ModelFiles:
    """Raises `UnavailableError` if the configuration or a header is damaged. Absent weights are no error: a
    plan can be made from the configuration alone. `weights` is their folder, if it is not `folder`."""
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
        index_bytes=_limit(mapping(index.get("metadata")), "total_size"),
        tokenizer_length=_limit(_json(folder / TOKENIZER) or {}, "model_max_length"),
        encoder_length=_limit(_json(folder / SENTENCE) or {}, "max_seq_length"),
        pools=(folder / MODULES).is_file(),
    )


def _weight_files(folder: Path, index: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """The files named by the index, else all; and the names of those that are absent."""
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


def overridden(files: ModelFiles, choice: Choice) -> ModelFiles:
    return replace(files, config=_merged(files.config, choice.overrides)) if choice.overrides else files


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merged recursively, as in vLLM."""
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


def _limit(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return int(value) if isinstance(value, int | float) and 0 < value < ENDLESS else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def read_header(path: Path) -> tuple[Tensor, ...]:
    """The tensors of one safetensors file. Raises `HeaderError`, and `OSError` if it cannot be read."""
    with path.open("rb") as file:
        length_bytes = file.read(8)
        if len(length_bytes) < 8:
            raise HeaderError(f"{path.name} is too short for a safetensors file")
        (length,) = struct.unpack("<Q", length_bytes)
        if length > LONGEST_HEADER:
            raise HeaderError(f"{path.name} is no safetensors file")
        text = file.read(length)
        size = path.stat().st_size
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = tuple(_tensor(name, entry) for name, entry in entries.items())
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise HeaderError(f"the header of {path.name} is damaged") from error
    if size < 8 + length + end:
        raise HeaderError(f"{path.name} is cut off: {size} of {8 + length + end} bytes are there")
    return tensors


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in BITS:
        raise ValueError(entry["dtype"])
    return Tensor(name, entry["dtype"], tuple(int(size) for size in entry["shape"]))


def identity(model: str, environ: Mapping[str, str], choice: Choice) -> str | None:
    """A digest that changes when the configuration or a weights file does; None if there are none. Weights
    count by size and time of modification. Raises `OSError`."""
    folder = find_folder(model, environ, choice)
    if folder is None or not (folder / "config.json").is_file():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(weights_folder(model, folder, choice).glob("*.safetensors*")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
