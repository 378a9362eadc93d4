"""The words of one vLLM server's command line, and what surrounds it, as an engine of memoria.yaml."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoria.config.dropped_flags import SUCCESSORS
from memoria.config.environment import looks_secret
from memoria.config.model import ConfigPath
from memoria.config.paths import expand, hub_home, is_local_model
from memoria.config.schema import VLLM_KEYS
from memoria.config.vllm_flags import HARMLESS, refusal, variable_refusal
from memoria.init.draft import DraftEngine, LeftOut, Published, Verbatim, number
from memoria.vllm.flags import Options, UnknownFlagError

SERVERS = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
PORT = 8000  # vLLM's own default
# vLLM's short flags (0.33), by their long names.
_SHORT = {
    **{"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"},
    **{"-q": "--quantization", "-n": "--nnodes", "-r": "--node-rank", "-ep": "--enable-expert-parallel"},
    **{"-sc": "--speculative-config", "-cc": "--compilation-config", "-ac": "--attention-config"},
    **{"-dc": "--diffusion-config", "-asc": "--api-server-count", "-dcp": "--decode-context-parallel-size"},
    "-O": "--optimization-level",
}
_OPTIMIZATION = re.compile(r"-O(\d)")
# Flags that take no value, where the installed vLLM does not say it: a word after them is the model.
_SWITCH = re.compile(
    r"(enable|disable|no|skip|use)_.*|trust_remote_code|enforce_eager|async_scheduling|headless"
)
_FRACTION = re.compile(r"(0?\.\d+|1(\.0*)?)")
# Flags with several values (0.32, 0.33).
_MANY = frozenset(
    {
        *("allowed_media_domains", "api_key", "collect_detailed_traces", "cpu_offload_params", "hf_token"),
        *("cudagraph_capture_sizes", "ignore_patterns", "kv_cache_dtype_skip_layers", "limit_mm_per_prompt"),
        *("logits_processors", "lora_modules", "lora_target_modules", "middleware", "numa_bind_cpus"),
        *("numa_bind_nodes", "offload_params", "served_model_name", "sleep_preserve_parameter_names"),
    }
)
_LISTS = frozenset(
    {"lora_modules", "served_model_name", "allowed_origins", "middleware", "logits_processors"}
)
_POOLING_TASKS = frozenset({"embed", "embedding", "score", "classify", "reward"})
# Set by memoria, or of no meaning without a container.
_SILENT = re.compile(
    r"DO_NOT_TRACK|VLLM_NO_USAGE_STATS|VLLM_DO_NOT_TRACK|PYTHONUNBUFFERED|VLLM_WORKER_MULTIPROC_METHOD"
    r"|NVIDIA_DRIVER_CAPABILITIES|PATH|HOME|TZ|LANG|LC_ALL|CUDA_DEVICE_ORDER"
)
_KEYS = "clients' keys are lines of a file: `keys: FILE`"
NO_MODEL = "it names no model"
_NEEDLESS = frozenset({"enable_request_id_headers", "uvicorn_log_level"})  # set by memoria
_REASONS: Mapping[str, str] = {
    "api_key": _KEYS,
    "hf_token": "set HF_TOKEN in the environment, or in a `.env` beside the file",
    "gpu_memory_utilization": "it is no fraction of a GPU",
    "task": "vLLM finds it out by itself",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """`source` is a folder of the host, or the name of a volume that is Docker's own."""

    source: str
    target: str

    @property
    def is_of_the_host(self) -> bool:
        return self.source.startswith(("/", "~", "."))


@dataclass(slots=True)
class Place:
    """Where a server was started. `gpus` are the ones that a container sees; `folder` is where relative paths
    begin. `where` gives the place of a part of it, for messages."""

    name: str
    source: str
    folder: Path
    environ: Mapping[str, str]  # of the host
    env: Mapping[str, str | None] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    gpus: Sequence[str] = ()
    published: Published | None = None
    in_container: bool = False
    where: Callable[[ConfigPath], str] = lambda path: ""

    @property
    def hub(self) -> str | None:
        """The hub's folder: as HF_HOME says, or where something is mounted for it in the user's home."""
        if written := self.env.get("HF_HOME"):
            return str(written)
        for mount in self.mounts:
            home, cache, rest = f"{mount.target.rstrip('/')}/".partition("/.cache/")
            if cache and rest in ("", "huggingface/", "huggingface/hub/"):
                return f"{home}/.cache/huggingface"
        return None

    def on_the_host(self, path: str) -> str | None:
        """The same file outside the container; None where there is none."""
        if not self.in_container:
            return str(self.folder / path) if path.startswith(("./", "../")) else path
        for mount in sorted(self.mounts, key=lambda mount: -len(mount.target)):
            target = mount.target.rstrip("/")
            if mount.is_of_the_host and (path == target or path.startswith(f"{target}/")):
                source = str(expand(mount.source, self.folder, self.environ))
                return os.path.normpath(source + path[len(target) :])
        return None


def served(words: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """What stands before vLLM's server in a command, and the server's own words; None if it starts none."""
    for index, word in enumerate(words):
        rest = list(words[index + 1 :])
        if word.rsplit("/", 1)[-1] == "vllm" and rest[:1] == ["serve"]:
            return list(words[:index]), rest[1:]
        if word == "-m" and rest and rest[0] in SERVERS:
            return list(words[:index]), rest[2:] if rest[1:2] == ["serve"] else rest[1:]
    return None


class Translator:
    """`left_out` collects what has no counterpart. `options` are those of the installed vLLM, if they are
    known."""

    def __init__(self, environ: Mapping[str, str], options: Options | None = None) -> None:
        self.left_out: list[LeftOut] = []
        self.environ = environ
        self._options = options

    def leave_out(self, place: Place, what: str, why: str, path: ConfigPath = ()) -> None:
        self.left_out.append(LeftOut(place.where(path) or place.source, what, why))

    def engine(self, words: Sequence[str], place: Place, path: ConfigPath = ()) -> DraftEngine | None:
        """None without a model. `path` is where the words stand."""
        positional, flags = self._flags(words)
        flagged = next((values[0] for name, values in flags if name in ("model", "model_tag") and values), "")
        model = flagged or next(iter(positional), "")
        if not model:
            self.leave_out(place, place.name or "vllm serve", NO_MODEL, path)
            return None
        for word in positional if flagged else positional[1:]:
            self.leave_out(place, f"`{word}`", "it belongs to no flag", path)
        engine = DraftEngine(place.name, self._model(model, place), source=place.source)
        port, host = PORT, ""
        for name, values in flags:
            text = values[0] if values else ""
            match name:
                case "model" | "model_tag":
                    continue
                case "port" if text.isdecimal():
                    port = int(text)
                case "host":
                    host = text
                case _:
                    self._take(engine, name, values, place, path)
        engine.published = place.published
        if not place.in_container:
            engine.published = Published("" if host in ("", "0.0.0.0", "::") else host, port)
        self._environment(engine, place)
        return engine

    def _flags(self, words: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
        positional: list[str] = []
        flags: list[tuple[str, list[str]]] = []
        for word in words:
            if level := _OPTIMIZATION.fullmatch(word):
                flags.append(("optimization_level", [level[1]]))
                continue
            name, equals, value = word.partition("=")
            if name in _SHORT or (name.startswith("--") and len(name) > 2):
                head, dot, key = _SHORT.get(name, name)[2:].partition(".")
                flags.append((head.replace("-", "_") + dot + key, [value] if equals else []))
            elif flags and not self._is_full(*flags[-1]):
                flags[-1][1].append(word)
            else:
                positional.append(word)
        return positional, flags

    def _is_full(self, name: str, values: Sequence[str]) -> bool:
        """Whether the next word is no value of this flag."""
        if self._options is not None:
            try:
                takes = self._options.find(name).option.takes
            except UnknownFlagError:
                pass
            else:
                return takes == "nothing" or (takes in ("one", "optional", "each") and bool(values))
        return _SWITCH.fullmatch(name) is not None or (bool(values) and name not in _MANY)

    def _model(self, model: str, place: Place) -> str:
        if is_local_model(model):
            return place.on_the_host(model) or model
        found = place.folder / model
        return str(found) if not place.in_container and found.is_dir() else model

    def _take(
        self, engine: DraftEngine, name: str, values: list[str], place: Place, path: ConfigPath
    ) -> None:
        if name in _NEEDLESS or self._take_own(engine, name, values):
            return
        if (why := self._why_not(name, values, place)) is not None:
            self.leave_out(place, f"`--{name.replace('_', '-')}`", why, path)
        elif name == "pooler_config":
            engine.keys[name] = _renamed(self._argument(name, values))
        elif name in VLLM_KEYS:
            engine.keys[name] = self._argument(name, values)
        else:
            self._add(engine, name, values)

    def _take_own(self, engine: DraftEngine, name: str, values: list[str]) -> bool:
        """Whether the flag is one of those that have a key of memoria's own, or change nothing."""
        text = values[0] if values else ""
        match name:
            case "served_model_name":
                engine.keys[name] = values if len(values) > 1 else text
            case "gpu_memory_utilization" | "device_memory_utilization" if _FRACTION.fullmatch(text):
                engine.keys["gpu_memory_utilization"] = Verbatim(text)
            case "runner" if text in ("generate", "pooling"):
                engine.keys["runner"] = text
            case "task" if text in _POOLING_TASKS:
                engine.keys["runner"] = "pooling"
            case "trust_remote_code":
                engine.keys[name] = True
            case "runner" | "task" | "convert":
                return text in ("auto", "none", "generate")
            case _:
                return name in HARMLESS and (number(text) if values else True) == HARMLESS[name]
        return True

    def _why_not(self, name: str, values: list[str], place: Place) -> str | None:
        """The reason why a flag is left out."""
        if name in _REASONS:
            return _REASONS[name]
        if name != "convert" and (hint := refusal(name)):
            return hint
        if name in VLLM_KEYS:
            return None if values or name == "enforce_eager" else "it has no value"
        if (why := self._unknown(name)) is not None:
            return why
        if (missing := self._relocate(values, place)) is not None:
            return f"`{missing}` is a file within the container: copy it, and name it under `args`"
        return None

    def _unknown(self, name: str) -> str | None:
        """What to do instead of a flag that vLLM does not have."""
        if self._options is not None:
            try:
                self._options.find(name)
            except UnknownFlagError as error:
                return f"{error}; {error.hint}"
            return None
        return SUCCESSORS.get(name.removeprefix("no_").partition(".")[0])

    def _relocate(self, values: list[str], place: Place) -> str | None:
        """Paths in a container become the host's, in place; returns one that has no place there."""
        if not place.in_container:
            return None
        for index, value in enumerate(values):
            head, equals, tail = value.rpartition("=")
            if not tail.startswith("/"):
                continue
            found = place.on_the_host(tail)
            if found is None:
                return tail
            values[index] = head + equals + found
        return None

    def _add(self, engine: DraftEngine, name: str, values: list[str]) -> None:
        on = not (name.startswith("no_") and not values)
        head, dot, key = name.partition(".")
        written = (head if on else head.removeprefix("no_")).replace("_", "-") + dot + key
        value = self._argument(name, values) if on else False
        if written in engine.args and (name in _LISTS or isinstance(engine.args[written], list)):
            before = engine.args[written]
            value = [*(before if isinstance(before, list) else [before]), value]
        engine.args[written] = value

    def _argument(self, name: str, values: list[str]) -> Any:
        if not values:
            return True
        if name == "limit_mm_per_prompt" and all("=" in value for value in values):
            pairs = (pair.partition("=") for value in values for pair in value.split(","))
            return {kind: number(count) for kind, _, count in pairs}
        found = [_value(value) for value in values]
        return found if len(found) > 1 or name == "lora_modules" else found[0]

    def _environment(self, engine: DraftEngine, place: Place) -> None:
        self._choose_gpu(engine, place)
        self._choose_hub(engine, place)
        for name, value in place.env.items():
            path = ("environment", name)
            if value is None or value == "" or name.startswith(("CUDA_VISIBLE", "NVIDIA_VISIBLE", "HF_HOME")):
                continue
            if _SILENT.fullmatch(name) or (name == "HF_HUB_CACHE" and "HF_HUB_CACHE" in engine.env):
                continue
            if looks_secret(name) and name != "VLLM_API_KEY":
                why = "set it in the environment, or in a `.env` beside the file: engines get it from there"
                if self.environ.get(name) != value:
                    self.leave_out(place, f"`{name}`", why, path)
            elif (hint := variable_refusal(name)) is not None:
                self.leave_out(place, f"`{name}`", _KEYS if name == "VLLM_API_KEY" else hint, path)
            elif value.startswith("/") and (found := place.on_the_host(value)) is None:
                self.leave_out(place, f"`{name}`", f"`{value}` is a folder within the container", path)
            else:
                engine.env[name] = found if value.startswith("/") and found else value

    def _choose_gpu(self, engine: DraftEngine, place: Place) -> None:
        seen = [gpu for gpu in place.gpus if gpu not in ("all", "")]
        for name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
            listed = [gpu.strip() for gpu in str(place.env.get(name) or "all").split(",") if gpu.strip()]
            if listed and listed[0] not in ("all", "none", "void"):
                known = name.startswith("CUDA") and seen and all(gpu.isdecimal() for gpu in listed)
                seen = [seen[int(gpu)] for gpu in listed if int(gpu) < len(seen)] if known else listed
        if len(seen) > 1:
            self.leave_out(
                place, f"GPUs {', '.join(seen[1:])}", f"an engine lives on one GPU, here {seen[0]}"
            )
        if seen and seen[0] != "0":
            engine.keys["gpu"] = int(seen[0]) if seen[0].isdecimal() else seen[0]

    def _choose_hub(self, engine: DraftEngine, place: Place) -> None:
        """The folder of the models that are there already."""
        hub = place.hub
        if not place.in_container:
            if hub:
                engine.env["HF_HOME"] = hub
            return
        for name, target in (
            ("HF_HOME", hub),
            ("HF_HUB_CACHE", place.env.get("HF_HUB_CACHE") or (hub and f"{hub}/hub")),
        ):
            found = place.on_the_host(str(target)) if target else None
            home = hub_home(self.environ)
            if found is not None and found not in (str(home), str(home / "hub")):
                engine.env[name] = found
            if found is not None:
                return
        volumes = [mount for mount in place.mounts if hub and hub.startswith(mount.target.rstrip("/"))]
        for mount in volumes:
            why = f"it is Docker's own: the models are fetched again into {hub_home(self.environ)}, once"
            self.leave_out(place, f"volume `{mount.source}`", why, ("volumes",))


def _renamed(pooler: Any) -> Any:
    """`normalize` is refused in the file (`memoria.config.vllm_flags.read_pooler`)."""
    if not isinstance(pooler, dict):
        return pooler
    return {"use_activation" if key == "normalize" else key: value for key, value in pooler.items()}


def _value(word: str) -> Any:
    if word[:1] in ("{", "["):
        try:
            return json.loads(word)
        except (ValueError, RecursionError):
            return word
    return number(word)


def wrappers(before: Sequence[str]) -> Iterator[str]:
    """Words before a server that are neither assignments nor the program itself."""
    plain = {"sudo", "env", "exec", "nohup", "time", "uv", "run", "poetry", "python", "python3", "-E", "-u"}
    for word in before:
        base = word.rsplit("/", 1)[-1]
        if base not in plain and not base.startswith("python") and not ASSIGNMENT.match(word):
            yield word


ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
