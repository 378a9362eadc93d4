"""What tells one state of a model's files from another, without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from memoria.plan.checkpoint.model_files import Choice
from memoria.plan.checkpoint.read import find_folder, weights_folder


def identity(model: str, environ: Mapping[str, str], choice: Choice) -> str | None:
    """Changes when the configuration or a weights file does; None where there are none. Raises `OSError`."""
    folder = find_folder(model, environ, choice)
    if folder is None or not (folder / "config.json").is_file():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(weights_folder(model, folder, choice).glob("*.safetensors*")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
