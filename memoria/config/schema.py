"""What may stand in memoria.yaml: every key, its type, its bounds and its meaning.

`python -m memoria.config.schema configs/memoria.schema.json` writes the JSON schema that editors read.
Values arrive as `marks.Scalar` text, and pydantic turns them into numbers; `args` keeps YAML's own types.
"""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from memoria.config import model as facts
from memoria.config.sections import Cors, Filters, Guard, Hold, Limits, Log, Restart, Section, Timeouts, Want
from memoria.config.values import (
    Argument,
    Count,
    EngineName,
    Flags,
    Fraction,
    FractionOrAuto,
    Gpu,
    Hosts,
    Listen,
    ModelLen,
    Names,
    PoolerConfig,
    Port,
    Size,
    Variables,
    Word,
)


class Engine(Section):
    model: Argument = Field(
        description="A name on the Hugging Face hub; "
        "what begins with `/`, `./`, `../` or `~` is a folder, relative to this file."
    )
    runner: facts.Runner = Field(
        default="generate", description="What the model does: `generate` text, or `pooling`."
    )
    served_model_name: Names | None = Field(
        default=None, description="Name, or names, that clients use; unset: its model's, or its folder's."
    )
    gpu: Gpu | None = Field(default=None, description="Its GPU; unset: the one at the top.")
    gpu_memory_utilization: FractionOrAuto | None = Field(
        default=None,
        description="Share of the GPU's total memory that it may claim; `auto` chooses it from `want`. "
        "This or `gpu_memory` must be given.",
    )
    gpu_memory: Size | None = Field(
        default=None, description="The same as a size, as in `12GiB`, exact to the byte."
    )
    want: Want = Field(
        default_factory=Want,
        description="What its memory should do: `concurrency` requests of `context` tokens at once, "
        "`tokens` in the KV cache; `weight` shares what is left among engines that have one.",
    )
    learn: bool = Field(
        default=False,
        description="Restarts take the KV cache's size that the first start measured: they are alike.",
    )
    port: Port | None = Field(
        default=None, description="A port of its own, answered by memoria for this engine alone."
    )
    transport: facts.Transport = Field(
        default="uds",
        description="How memoria reaches it: `uds`, a private Unix socket; `tcp` gives vLLM the `port`.",
    )
    max_num_seqs: Count | None = Field(default=None, description="Most sequences in one step.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Most tokens in one step.")
    max_model_len: ModelLen | None = Field(
        default=None, description="Context length in tokens; `auto` fits it to the memory that is left."
    )
    dtype: Argument | None = Field(
        default=None, description="Type of the weights: `auto`, `bfloat16`, `half`, `float32`."
    )
    quantization: Argument | None = Field(
        default=None, description="Method of quantization, where the model does not tell."
    )
    kv_cache_dtype: Argument | None = Field(default=None, description="Type of the KV cache: `auto`, `fp8`.")
    kv_cache_memory_bytes: Count | None = Field(
        default=None, description="Size of the KV cache in bytes, instead of what the fraction leaves."
    )
    enforce_eager: bool | None = Field(
        default=None, description="No CUDA graphs: less memory, slower decoding."
    )
    trust_remote_code: bool | None = Field(
        default=None, description="Runs Python code out of the model's repository, with your rights."
    )
    convert: Argument | None = Field(
        default=None, description="Adapts a model to another task: `embed`, `classify`."
    )
    pooler_config: PoolerConfig | None = Field(
        default=None, description="Overrides the model's own pooler; a mapping, or JSON text."
    )
    scheduling_policy: Literal["fcfs", "priority"] | None = Field(
        default=None, description="Order of waiting requests: `fcfs` or `priority`."
    )
    max_requests: Count | None = Field(
        default=None,
        description="Most requests that it is given at once, the others wait (`hold`); "
        "unset: four times `max_num_seqs`, 64 at least.",
    )
    filters: Filters = Field(
        default_factory=Filters,
        description="What is changed in JSON bodies: `strip`, a list of fields to leave out, and `set`, "
        "a mapping of fields with their values.",
    )
    standby: bool = Field(
        default=False,
        description="A spare process waits at the GPU gate, all imported, for when this one dies: about 1 GB "
        "of host memory.",
    )
    args: Flags = Field(default_factory=dict, description="Any other flag of vLLM, by its name.")
    env: Variables = Field(default_factory=dict, description="Environment variables for this engine alone.")


class File(Section):
    """memoria.yaml: several vLLM models on one GPU."""

    listen: Listen = Field(
        default="127.0.0.1:8200",
        validate_default=True,
        description="HOST:PORT of the endpoint for all engines.",
    )
    keys: Word | None = Field(
        default=None,
        description="File of the API keys, a `name: key` line each, relative to this file; "
        "unset: none is asked for.",
    )
    admin_keys: Word | None = Field(
        default=None,
        description="File of the keys, as with `keys`, with which engines are steered over HTTP; "
        "unset: over the admin socket alone.",
    )
    open_to_network: bool = Field(
        default=False,
        description="Without `keys`, everybody who can reach the port may use the engines. "
        "Needed to say so when `listen` is not this machine alone.",
    )
    allowed_hosts: Hosts | None = Field(
        default=None, description="Names that memoria is reached by, besides its own addresses; `*` is any."
    )
    cors: Cors = Field(default_factory=Cors, description="Web pages of other origins.")
    gpu: Gpu = Field(default=0, description="Index or UUID of the GPU.")
    gpu_limit: Fraction = Field(
        default=Decimal("0.95"), description="The most that the fractions on one GPU may add up to."
    )
    device: facts.DeviceKind = Field(
        default="cuda", description="`cuda`, or `cpu` for the CPU build of vLLM."
    )
    vllm: Word = Field(
        default="auto",
        description="`auto`: this environment's vLLM, else what `memoria setup` made; "
        "or the path of an executable, or of a Python that has vLLM.",
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="How long memoria waits.")
    restart: Restart = Field(
        default_factory=Restart, description="When an engine that died is started again."
    )
    limits: Limits = Field(default_factory=Limits, description="What a request may ask for.")
    hold: Hold = Field(default_factory=Hold, description="Requests that wait for an engine.")
    guard: Guard = Field(default_factory=Guard, description="Latency guard between models.")
    log: Log = Field(default_factory=Log, description="Logs.")
    runtime_dir: Word | None = Field(
        default=None,
        description="Folder of the sockets; unset: `$RUNTIME_DIRECTORY`, else `memoria/ID` "
        "in `$XDG_RUNTIME_DIR`.",
    )
    engines: dict[EngineName, Engine] = Field(
        min_length=1,
        description="The vLLM servers by name, started in this order.",
        json_schema_extra={"additionalProperties": False},
    )


SECTIONS: dict[str, type[Section]] = {
    "cors": Cors,
    "timeouts": Timeouts,
    "restart": Restart,
    "limits": Limits,
    "hold": Hold,
    "guard": Guard,
    "log": Log,
}
# Keys of an engine that are memoria's own; all others are vLLM's flags, by vLLM's names.
OWN_ENGINE_KEYS = frozenset(
    {
        "model",
        "runner",
        "served_model_name",
        "gpu",
        "gpu_memory_utilization",
        "gpu_memory",
        "want",
        "learn",
        "port",
        "transport",
        "max_requests",
        "filters",
        "standby",
        "args",
        "env",
    }
)
VLLM_KEYS = tuple(key for key in Engine.model_fields if key not in OWN_ENGINE_KEYS)


def json_schema() -> dict[str, Any]:
    """The schema for editors: any value may be `${NAME}` text instead, any optional key may stand blank."""
    schema = File.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "memoria.yaml"
    schema["$defs"]["Engine"]["anyOf"] = [
        {"required": ["gpu_memory_utilization"]},
        {"required": ["gpu_memory"]},
    ]
    for section in (schema, *schema["$defs"].values()):
        required = section.get("required", ())
        for name, key in section["properties"].items():
            _loosen(key, required=name in required)
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
