"""Paths within vLLM's flags. They start at the configuration's folder, as `model` does: the daemon's own is
`/` under systemd.

A name without a slash in front may be vLLM's, the hub's or a module's: it is a path if there is something
beside the configuration, as vLLM itself prefers what is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memoria.config.model import ConfigPath
from memoria.config.paths import exists, expand, is_local_model
from memoria.config.report import Report
from memoria.config.yaml import Node, Scalar

# "read": a path that must exist; "made": vLLM makes it; "named": a path, or a name that is none.
_Use = Literal["read", "made", "named"]
_ANY = "*"
# By the flag, and the keys within its JSON. From vllm/config/*.py (0.32, 0.33) and the front end.
_USES: Mapping[tuple[str, ...], _Use] = {
    ("allowed_local_media_path",): "read",
    ("chat_template",): "named",
    ("compilation_config", "cache_dir"): "made",
    ("compilation_config", "debug_dump_path"): "made",
    ("default_mm_loras", _ANY): "named",
    ("download_dir",): "made",
    ("generation_config",): "named",
    ("hf_config_path",): "named",
    ("mm_encoder_fp8_scale_path",): "read",
    ("mm_encoder_fp8_scale_save_path",): "made",
    ("profiler_config", "proton_profiler_dir"): "made",
    ("profiler_config", "torch_profiler_dir"): "made",
    ("reasoning_parser_plugin",): "named",
    ("spec_model",): "named",
    ("speculative_config", "model"): "named",
    ("structured_outputs_config", "reasoning_parser_plugin"): "named",
    ("tokenizer",): "named",
    ("tool_parser_plugin",): "named",
    ("watchdog_config", "dump_dir"): "made",
}
_WITHIN_JSON = frozenset(keys[0] for keys in _USES if len(keys) > 1)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NOT_PATHS = {"chat_template": re.compile(r"[{}\n]"), "generation_config": re.compile(r"(auto|vllm)$")}


def resolve_paths(
    engine: dict[str, Node], path: ConfigPath, folder: Path, environ: Mapping[str, str], report: Report
) -> None:
    """Makes the paths under `args` absolute, in place. One that must exist and does not is a problem."""
    args = engine.get("args")
    if isinstance(args, dict):
        resolver = _Resolver(folder, environ, report)
        for flag, node in args.items():
            here = (*path, "args", flag)
            if flag == "lora_modules":
                args[flag] = resolver.adapters(node, here)
            else:
                args[flag] = resolver.value(node, tuple(flag.split(".")), here)


@dataclass(frozen=True, slots=True)
class _Resolver:
    folder: Path
    environ: Mapping[str, str]
    report: Report

    def value(self, node: Any, keys: tuple[str, ...], here: ConfigPath) -> Any:
        use = _USES.get(keys) or _USES.get((*keys[:-1], _ANY))
        if use and isinstance(node, str):
            return self._text(node, use, keys[0], here)
        if isinstance(node, str) and len(keys) == 1 and keys[0] in _WITHIN_JSON:
            return self._json(node, lambda found: self.value(found, keys, here))
        if isinstance(node, dict) and keys[0] in _WITHIN_JSON:
            return {key: self.value(value, (*keys, key), (*here, key)) for key, value in node.items()}
        return node

    def adapters(self, node: Any, here: ConfigPath) -> Any:
        """Of `lora_modules`: `NAME=PATH`, or a mapping with both, or several of them."""
        if isinstance(node, list):
            return [self.adapters(item, (*here, str(number))) for number, item in enumerate(node)]
        if isinstance(node, dict) and isinstance(node.get("path"), str):
            return node | {"path": self._text(node["path"], "named", "lora_modules", (*here, "path"))}
        if not isinstance(node, str):
            return node
        name, equals, written = node.partition("=")
        if not equals or "," in node:
            return self._json(node, lambda found: self.adapters(found, here))
        path = self._text(written, "named", "lora_modules", here)
        return node if path == written else _replaced(node, f"{name}={path}")

    def _json(self, text: str, resolved: Any) -> Any:
        """JSON text as it is, unless a path in it was relative."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        made = resolved(found) if isinstance(found, dict) else found
        return text if made == found else made

    def _text(self, written: str, use: _Use, flag: str, here: ConfigPath) -> str:
        no_path = _NOT_PATHS.get(flag)
        if not written or _URL.match(written) or (no_path and no_path.search(written)):
            return written
        place = expand(written, self.folder, self.environ)
        if use != "made" and not exists(place):
            if use == "named" and not is_local_model(written) and not written.endswith(".py"):
                return written
            self.report.error(
                f"nothing at `{written}`", here, hint=f"that is {place}: paths start at the file's folder"
            )
        return _replaced(written, str(place))


def _replaced(node: str, text: str) -> str:
    return Scalar(text, text, node.variables if isinstance(node, Scalar) else ())
