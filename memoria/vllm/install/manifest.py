"""The note that says an environment is complete. Written last: without it a folder is a half-made one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from memoria.vllm.install.facts import Variant

_NAME = "memoria-manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`verified_at` is a UTC time in ISO 8601 with a fixed width, so that text order is time order."""

    vllm: str
    variant: Variant
    memoria: str
    verified_at: str


def read_manifest(root: Path) -> Manifest | None:
    """None where there is none, or one that cannot be read: the environment does not count then."""
    try:
        return Manifest(**json.loads((root / _NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_manifest(root: Path, manifest: Manifest) -> None:
    fresh = root / f"{_NAME}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(root / _NAME)


def remove_manifest(root: Path) -> None:
    (root / _NAME).unlink(missing_ok=True)
