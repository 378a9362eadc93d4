"""Serve lines as people publish them, as an engine of memoria.yaml, and what memoria makes of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from memoria.config.load import load
from memoria.vllm.flags import Options, read_options
from tests.unit.commands import SERVE, spec

DATA = Path(__file__).parents[2] / "data"
LINES = tuple(
    line
    for line in (DATA / "serve_lines.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("vllm serve ")
)
VERSIONS = ("0.32.0", "0.33.0")
# What memoria sets, or does itself.
OWN = {"--host", "--port", "--api-key", "--served-model-name", "--gpu-memory-utilization"}
OWN_KEYS = {"runner", "trust-remote-code"}
NOT_COMPARED = frozenset(
    {"host", "port", "uds", "api_key", "served_model_name", "gpu_memory_utilization", "model", "model_tag"}
    | {"enable_request_id_headers", "disable_uvicorn_access_log", "runner"}
)
SHORT = {"-tp": "--tensor-parallel-size", "-q": "--quantization", "-O2": "--optimization-level=2"}


def recorded(version: str) -> Options:
    return read_options(json.loads((DATA / "options" / f"vllm-{version}.json").read_text()), version)


def flags(line: str) -> Iterator[list[str]]:
    """Each flag with its values; without memoria's own."""
    current: list[str] = []
    for word in shlex.split(line)[3:]:
        if word.startswith("--") or word in SHORT:
            if current and current[0] not in OWN:
                yield current
            current = SHORT.get(word, word).split("=", 1)
        else:
            current.append(word)
    if current and current[0] not in OWN:
        yield current


def original(line: str) -> list[str]:
    return ["--model", shlex.split(line)[2], *(word for flag in flags(line) for word in flag)]


def engine(line: str, *, json_as_text: bool) -> dict[str, Any]:
    """As one would write it: a repeated flag is a list, JSON is a mapping, or text."""
    args: dict[str, Any] = {}
    for name, *words in flags(line):
        values = [_value(word, json_as_text=json_as_text) for word in words]
        key, value = name[2:], values[0] if len(values) == 1 else values or True
        args[key] = [*_listed(args[key]), value] if key in args else value
    keys = {key.replace("-", "_"): args.pop(key) for key in OWN_KEYS & args.keys()}
    return {"model": shlex.split(line)[2], "gpu_memory_utilization": 0.5, "args": args} | keys


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(word: str, *, json_as_text: bool) -> Any:
    if word[0] in "{[":
        return word if json_as_text else json.loads(word)
    return yaml.safe_load(word) if word[0] not in "*" else word


def argv(line: str, options: Options, folder: Path, *, json_as_text: bool = False) -> list[str]:
    """What memoria starts vLLM with, after the model."""
    file = folder / "memoria.yaml"
    file.write_text(
        yaml.safe_dump({"engines": {"a": engine(line, json_as_text=json_as_text)}}, sort_keys=False)
    )
    config = load(file, {"HOME": "/home/user"})
    made = spec(config=config, engine=config.engines[0], install=replace(SERVE, options=options))
    return ["--model", *made.argv[2:]]
