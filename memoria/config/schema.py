"""What may stand in memoria.yaml: the facts of `memoria.config.model`, and the keys that only the file has.

`python -m memoria.config.schema configs/memoria.schema.json` writes the JSON schema that editors read.
Values arrive as `yaml.Scalar` text, and pydantic turns them into numbers; `args` keeps YAML's own types.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from memoria.config import model
from memoria.config.values import (
    Argument,
    Count,
    EngineName,
    Flags,
    Gpu,
    Hosts,
    ModelLen,
    Origins,
    PoolerConfig,
    ScaledCount,
    Section,
    Word,
    key,
    keys,
)
from memoria.config.yaml import EXTENSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(model.EngineKeys):
    """One vLLM server."""

    max_num_seqs: Count | None = key("Most sequences in one step.", None)
    max_num_batched_tokens: ScaledCount | None = key("Most tokens in one step, as in `8192` or `8k`.", None)
    max_model_len: ModelLen | None = key(
        "Context length in tokens, as in `8192` or `32k`; `auto` fits it to the memory that is left.", None
    )
    dtype: Argument | None = key("Type of the weights: `auto`, `bfloat16`, `half`, `float32`.", None)
    quantization: Argument | None = key(
        "Method of quantization, where the model's files do not name it.", None
    )
    kv_cache_dtype: Argument | None = key("Type of the KV cache: `auto`, `fp8`.", None)
    kv_cache_memory_bytes: ScaledCount | None = key(
        "Size of the KV cache in bytes, instead of what the fraction leaves.", None
    )
    enforce_eager: bool | None = key("No CUDA graphs: less memory, slower decoding.", None)
    trust_remote_code: bool | None = key(
        "Runs Python code from the model's repository, with your rights.", None
    )
    convert: Argument | None = key("Adapts a model to another task: `embed`, `classify`.", None)
    pooler_config: PoolerConfig | None = key(
        "Overrides the model's own pooler; a mapping, or JSON text.", None
    )
    scheduling_policy: Literal["fcfs", "priority"] | None = key(
        "Order of waiting requests: `fcfs` or `priority`.", None
    )
    args: Flags = key("Any other flag of vLLM, by its name; relative paths start at this file.", dict)


@dataclass(frozen=True, slots=True)
class Cors(Section):
    origins: Origins = key(
        "Origins whose web pages may send requests, as in `https://app.example.org`; `*` is any.",
        (),
        shown=None,
    )


@dataclass(frozen=True, slots=True)
class Tls(Section):
    cert: Word | None = key(
        "PEM file of the certificate and those that signed it, relative to this file; unset: no TLS.", None
    )
    private_key: Word | None = key(
        "PEM file of its private key, without a password; unset: it is in `cert`.", None, alias="key"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class File(model.CommonKeys):
    """memoria.yaml: several vLLM models on one GPU."""

    keys: Word | None = key(
        "File of the API keys, a `name: key` line each, relative to this file; unset: no key is needed.", None
    )
    admin_keys: Word | None = key(
        "File of the keys, as with `keys`, that allow to control engines over HTTP; "
        "unset: only the admin socket does.",
        None,
    )
    tls: Tls = key("HTTPS instead of HTTP, on `listen` and the engines' own ports.", Tls)
    open_to_network: bool = key(
        "Everyone who can reach the port may use the engines. "
        "Required if `listen` is open to other machines and there are no `keys`.",
        False,
    )
    allowed_hosts: Hosts = key(
        "Names that memoria is reached by, besides its own addresses; `*` is any. A program that sends a key "
        "needs none.",
        (),
        shown=None,
    )
    cors: Cors = key("Web pages of other origins.", Cors)
    gpu: Gpu = key(
        "Index of the GPU (within CUDA_VISIBLE_DEVICES, if set), or the UUID of a GPU or a MIG slice.",
        0,
    )
    engines: dict[EngineName, Engine] = field(
        metadata={
            "description": "The vLLM servers by name, started in this order.",
            "min_length": 1,
            "json_schema_extra": {"additionalProperties": False},
        }
    )


FILE = TypeAdapter(File)
SECTIONS: dict[str, type[Section]] = {
    "cors": Cors,
    "tls": Tls,
    "timeouts": model.Timeouts,
    "restart": model.Restart,
    "limits": model.Limits,
    "hold": model.Hold,
    "swap": model.Swap,
    "guard": model.Guard,
    "log": model.Logging,
}
# Keys of an engine that are vLLM's flags, by vLLM's names; all others are memoria's own.
VLLM_KEYS = tuple(name for name in keys(Engine) if name not in keys(model.EngineKeys) and name != "args")


def json_schema() -> dict[str, Any]:
    """The schema for editors: any value may be `${NAME}` text instead, any optional key may stand blank."""
    schema = FILE.json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "memoria.yaml"
    schema["patternProperties"] = {f"^{EXTENSION}": {}}
    schema["$defs"]["Engine"]["anyOf"] = [
        {"required": ["gpu_memory_utilization"]},
        {"required": ["gpu_memory"]},
    ]
    del schema["$defs"]["Guard"]["required"]  # both keys, or none
    for section in (schema, *schema["$defs"].values()):
        required = section.get("required", ())
        for name, about in section["properties"].items():
            _loosen(about, required=name in required)
    return schema


def _loosen(key: dict[str, Any], *, required: bool) -> None:
    about: dict[str, Any] = {word: key.pop(word) for word in ("description", "default") if word in key}
    key.pop("title", None)
    choices = [choice for choice in key.pop("anyOf", None) or [dict(key)] if choice.get("type") != "null"]
    if not any(_is_any_text(choice) for choice in choices):
        choices.append({"type": "string", "pattern": r"\$\{?[A-Za-z_]"})
    if not required:
        choices.append({"type": "null"})
    if about.get("default") is None or "$ref" in choices[0]:
        about.pop("default", None)
    key.clear()
    key.update(about, anyOf=choices)


def _is_any_text(choice: dict[str, Any]) -> bool:
    return choice.get("type") == "string" and not choice.keys() & {"enum", "const", "pattern"}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
