"""The configuration as the rest of memoria reads it, each key with its type, bounds, default and meaning.

Field names are the file's keys (`alias` where they differ), and keys passed on to vLLM keep vLLM's names. The
meanings appear in the README, in editors and in error messages. Values become facts in `memoria.config.load`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from re import compile as compile_pattern
from typing import Annotated, Any, Literal

from memoria.config.values import (
    Argument,
    Changes,
    Concurrency,
    Count,
    EngineName,
    Fields,
    Folder,
    Fraction,
    FractionOrAuto,
    Gpu,
    LogFormat,
    LogLevel,
    Mebibytes,
    Names,
    Percent,
    Port,
    Reader,
    ScaledCount,
    Seconds,
    SecondsOrZero,
    Section,
    Size,
    SizeOrAuto,
    SizeOrBudget,
    SleepLevel,
    Variables,
    Weight,
    Whole,
    Word,
    key,
)
from memoria.errors import Mark, Problem

Runner = Literal["generate", "pooling"]
DeviceKind = Literal["cuda", "cpu"]
Transport = Literal["uds", "tcp"]
ConfigPath = tuple[str, ...]

_ADDRESS = compile_pattern(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[1-9][0-9]{0,4})"
)


def nearest_mark(marks: Mapping[ConfigPath, Mark], path: ConfigPath) -> Mark | None:
    """The mark of `path`, or of the nearest key above it."""
    for end in range(len(path), -1, -1):
        if mark := marks.get(path[:end]):
            return mark
    return None


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `host` is an address or a name, IPv6 without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: Any) -> Address:
        """From `HOST:PORT`, an IPv6 host in brackets. Raises `ValueError`."""
        match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match["port"]) > 65535:
            raise ValueError("must be HOST:PORT, as in 127.0.0.1:8200 or [::1]:8200")
        return cls(match["ipv6"] or match["host"], int(match["port"]))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than `localhost` may resolve to anything."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts(Section):
    """In seconds."""

    start: Seconds = key("From an engine's start, or its wake, until it answers.", 600.0)
    drain: SecondsOrZero = key("For requests in flight before an engine is stopped.", 30.0)
    stop: Seconds = key("From SIGTERM to SIGKILL.", 15.0)
    release: Seconds = key(
        "From an engine's exit, or since it began to fall asleep, until its memory is free again.", 60.0
    )
    hang: SecondsOrZero = key(
        "An engine with requests in flight that makes no progress for so long is restarted; 0: never.", 120.0
    )
    idle: SecondsOrZero = key(
        "Longest silence of an engine during an answer while its core makes no progress; 0: no limit.", 120.0
    )
    connect: Seconds = key("For a connection to an engine.", 2.0)
    health: Seconds = key("For one health check.", 5.0)


@dataclass(frozen=True, slots=True)
class Restart(Section):
    """Delays in seconds: `min(cap, initial * 2^n) +- 20 %`."""

    initial: Seconds = key("Delay before the first restart; it doubles each time.", 2.0)
    cap: Seconds = key("Longest delay between two starts.", 300.0)
    reset: Seconds = key("Time in service after which delays begin anew.", 600.0)
    attempts: Count = key("Failed starts in a row after which an engine that was never ready is given up.", 5)


@dataclass(frozen=True, slots=True)
class Limits(Section):
    body_bytes: Mebibytes = key("Largest request body, in MiB.", 64 << 20, alias="body_mb", shown=64)


A_START = 30.0  # seconds, of an engine on demand: an estimate
LONGEST_HOLD = 600.0  # by default; as long as OpenAI's clients wait


@dataclass(frozen=True, slots=True)
class Hold(Section):
    """All engines together."""

    seconds: SecondsOrZero = key(
        "Longest wait of a request for an engine that is busy or starting; 0: none. Unset with engines on "
        "demand: longer, by `swap.turn` and 30 s for each of them, at most 600.",
        30.0,
    )
    requests: Whole = key("Most requests that wait; past it a client still has its share.", 256)
    bytes: Whole = key(
        "Most bytes of request bodies that wait, and of uploads; past it a client still has its share.",
        64 << 20,
    )


@dataclass(frozen=True, slots=True)
class Swap(Section):
    """Turns of the engines on demand that do not fit beside each other."""

    turn: Seconds = key("How long a busy engine keeps its memory while another waits for it.", 30.0)
    patience: Seconds = key("A request that waits for so long ends the turn of another engine.", 60.0)
    min_awake: SecondsOrZero = key("After a wake an engine keeps its memory for so long at least.", 10.0)
    tell_after: SecondsOrZero = key(
        "A stream that waits for an engine on demand begins after so long, and gets comments; 0: never.", 5.0
    )
    host_memory: SizeOrAuto = key(
        "Host memory for the weights of engines with `sleep_level: 1`, all together; past it they end "
        "instead; `auto`: half of what is free when memoria starts.",
        None,
        shown="auto",
    )
    verify: bool = key("An engine that slept must answer one request as before, or it is started anew.", True)


@dataclass(frozen=True, slots=True)
class Guard(Section):
    """Off unless both keys are there."""

    protect: EngineName = field(
        metadata={"description": "The engine whose latency comes first; unset: no guard."}
    )
    inter_token_ms: Seconds = field(
        metadata={
            "description": "While its tokens are further apart than this, the other engines on its GPU get "
            "fewer requests at once."
        }
    )


@dataclass(frozen=True, slots=True)
class Filters(Section):
    """Of one engine's JSON bodies: fields removed, then fields set."""

    strip: Fields = key("Fields to remove.", (), shown=None)
    set: Changes = key("Fields to set, whatever the client sent.", dict)


@dataclass(frozen=True, slots=True)
class Logging(Section):
    level: LogLevel = key("Lowest level of memoria's own log; unset: `$LOG_LEVEL`.", "INFO")
    format: LogFormat = key("Format of memoria's own log; unset: `$LOG_FORMAT`.", "text")
    requests: Literal["none", "text", "json"] = key(
        "Format of the request log, `memoria.requests.log` in `dir`; `none`: there is none.", "none"
    )
    dir: Folder = key(
        "Folder of the engines' logs; unset: `$LOGS_DIRECTORY`, else `memoria/ID/logs` in `$XDG_STATE_HOME`.",
        Path("logs"),
        shown=None,
    )
    max_bytes: Mebibytes = key(
        "Size at which an engine's log is rotated, in MiB.", 20 << 20, alias="max_mb", shown=20
    )
    keep: Whole = key("Rotated logs kept per engine.", 3)


@dataclass(frozen=True, slots=True)
class Want(Section):
    """Wishes of one engine."""

    context: ScaledCount | None = key("Tokens of a request, its answer included.", None)
    concurrency: Concurrency | None = key("Such requests at once.", None)
    tokens: ScaledCount | None = key("Tokens in the KV cache, all requests together.", None)
    weight: Weight | None = key("Share of what the wishes of all engines leave; unset: none.", None)


# vLLM queues what does not fit into a step. Four waves of requests keep its batches full, also when many end
# at once; more would wait in vLLM instead of here, where clients take turns.
REQUESTS_PER_SEQUENCE = 4
MIN_REQUESTS = 64
VLLM_MAX_NUM_SEQS = 1024  # vLLM's largest default, on large GPUs (vllm/engine/arg_utils.py)


def default_max_requests(max_num_seqs: int | None) -> int:
    return max(MIN_REQUESTS, REQUESTS_PER_SEQUENCE * (max_num_seqs or VLLM_MAX_NUM_SEQS))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKeys(Section):
    """The keys of an engine that are memoria's own. `gpu_memory_utilization` is exact (a decimal, never a
    float); 0 until the plan has chosen it, where the file has `gpu_memory` (in bytes) or `auto`
    (`memoria.plan.wishes`). `served_model_name` is never empty once loaded: /v1/models lists the first name,
    and requests may use any."""

    model: Argument = field(
        metadata={
            "description": "A name on the Hugging Face hub; a folder, relative to this file, if it begins "
            "with `/`, `./`, `../` or `~`."
        }
    )
    runner: Runner = key("What the model does: `generate` text, or `pooling`.", "generate")
    served_model_name: Names = key(
        "Name, or names, that clients use; unset: the model's, or its folder's.", (), shown=None
    )
    gpu: Gpu = key("Its GPU; unset: the `gpu` at the top.", 0, shown=None)
    gpu_memory_utilization: FractionOrAuto = key(
        "Share of the GPU's total memory that it may claim; `auto` chooses it from `want`. "
        "This or `gpu_memory` is required.",
        Decimal(0),
        shown=None,
    )
    gpu_memory: Size | None = key("The same as a size, as in `12GiB`, exact to the byte.", None)
    want: Annotated[Want | None, Reader(after=lambda want: want if want != Want() else None)] = key(
        "What its memory should serve: `concurrency` requests of `context` tokens at once, "
        "`tokens` in the KV cache; `weight` shares what is left among the engines that have one.",
        None,
    )
    learn: bool = key("Keeps the KV cache's size measured by the first start, so that restarts match.", False)
    port: Port | None = key("A port of its own, answered by memoria for this engine alone.", None)
    transport: Transport = key(
        "How memoria reaches it: `uds`, a private Unix socket; `tcp` gives vLLM the `port`.", "uds"
    )
    max_requests: Count = key(
        "Most requests sent to it at once, the others wait (`hold`); "
        "unset: four times `max_num_seqs`, at least 64.",
        MIN_REQUESTS,
        shown=None,
    )
    filters: Filters = key(
        "Changes to JSON bodies: `strip`, a list of fields to remove, and `set`, "
        "a mapping of fields with their values.",
        Filters,
    )
    standby: bool = key(
        "A spare process waits at the GPU gate, all imported, to replace this one when it dies: about 1 GB "
        "of host memory.",
        False,
    )
    on_demand: bool = key(
        "Runs only while it is used: started by its first request, ended when another engine on demand needs "
        "its memory; otherwise it is resident and never ended for another.",
        False,
    )
    ttl: SecondsOrZero = key(
        "On demand: idle time in seconds after which it ends by itself; 0: only when its memory is needed.",
        0.0,
    )
    sleep_level: SleepLevel = key(
        "On demand: how it gives its memory back. `none`: its process ends; with `standby` the next start "
        "waits at the GPU gate meanwhile. vLLM's sleep mode: `1` keeps the weights in host memory, `2` reads "
        "them again from their files.",
        0,
        shown="none",
    )
    preload: bool = key("On demand: started once with memoria, as if by a request.", False)
    priority: Whole = key("On demand: it is not ended for an engine of lower priority.", 0)
    compute_percent: Percent | None = key(
        "With `mps`: share of each GPU's multiprocessors that it may use at once; unset: all.", None
    )
    pinned_memory: SizeOrBudget | None = key(
        "With `mps`: GPU memory that the driver gives it at most, as in `12GiB`; `budget`: its budget and a "
        "context. Unset: no limit but vLLM's own.",
        None,
    )
    env: Variables = key("Environment variables for this engine alone.", dict)


def adapter_names(lora_modules: Any) -> Iterator[str]:
    """The names by which clients reach an engine's adapters: of `NAME=PATH`, a mapping, JSON text, or a list
    of these (`LoRAParserAction` of vLLM's front end). What is none of them is vLLM's to refuse."""
    if isinstance(lora_modules, list | tuple):
        for item in lora_modules:
            yield from adapter_names(item)
    elif isinstance(lora_modules, Mapping):
        if isinstance(name := lora_modules.get("name"), str):
            yield str(name)
    elif isinstance(lora_modules, str):
        name, equals, _ = lora_modules.partition("=")
        if equals and "," not in lora_modules:
            yield str(name)
        else:
            with suppress(ValueError, RecursionError):
                yield from adapter_names(json.loads(lora_modules))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(EngineKeys):
    """One engine. `vllm_args` are vLLM's own flags by their names with underscores."""

    name: str
    vllm_args: Mapping[str, Any]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that it answers to from its start on, the main one first."""
        return tuple(
            dict.fromkeys((*self.served_model_name, *adapter_names(self.vllm_args.get("lora_modules"))))
        )

    @property
    def is_auto(self) -> bool:
        """Whether its fraction is still to be chosen from wishes."""
        return not self.gpu_memory_utilization and self.gpu_memory is None


@dataclass(frozen=True, slots=True)
class Access:
    """Who has access. Hosts and origins are lower case; `*` among them allows any."""

    keys: Path | None = None  # a `name: key` line each; None: no key is needed
    allowed_hosts: tuple[str, ...] = ()  # besides the listener's own addresses; without ports
    origins: tuple[str, ...] = ()  # of other sites' pages (CORS)
    admin_keys: Path | None = None  # as `keys`; None: only the admin socket controls engines


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the listening addresses. `cert`: the certificate and those that signed it; `key` None: its
    private key is there, too."""

    cert: Path
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonKeys(Section):
    """The keys at the top of the file that are facts as they are."""

    listen: Annotated[Address, Reader(instead=Address.parse, schema={"type": "string"})] = key(
        "HOST:PORT of the endpoint for all engines.", Address("127.0.0.1", 8200), shown="127.0.0.1:8200"
    )
    device: DeviceKind = key("`cuda`, or `cpu` for the CPU build of vLLM.", "cuda")
    mps: bool = key(
        "Engines run under CUDA MPS, managed by memoria: their kernels run side by side, within the limits "
        "`compute_percent` and `pinned_memory`.",
        False,
    )
    gpu_limit: Fraction = key("Most that the fractions on one GPU may add up to.", Decimal("0.95"))
    vllm: Word = key(
        "`auto`: this environment's vLLM, else the one that `memoria setup` made; "
        "or the path of an executable, or of a Python that has vLLM.",
        "auto",
    )
    timeouts: Timeouts = key("How long memoria waits.", Timeouts)
    restart: Restart = key("When a failed engine is started again.", Restart)
    limits: Limits = key("Limits of a request.", Limits)
    hold: Hold = key("Requests that wait for an engine.", Hold)
    swap: Swap = key("Turns of engines on demand.", Swap)
    guard: Annotated[
        Guard | None, Reader(before=lambda node: None if Guard.without_blanks(node) == {} else node)
    ] = key("Latency guard between models.", None)
    logging: Logging = key("Logs.", Logging, alias="log")
    runtime_dir: Folder = key(
        "Folder of the sockets (0700); unset: `$RUNTIME_DIRECTORY`, else `memoria/ID` in `$XDG_RUNTIME_DIR`.",
        Path("run"),
        shown=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(CommonKeys):
    """Frozen and complete: paths are absolute, every default is filled in."""

    path: Path | None  # the file; None for the demo
    engines: tuple[EngineConfig, ...]
    access: Access = Access()
    tls_files: TlsFiles | None = None
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    marks: Mapping[ConfigPath, Mark] = field(default_factory=dict, repr=False, compare=False)

    def engine(self, name: str) -> EngineConfig:
        return next(engine for engine in self.engines if engine.name == name)

    def where(self, *path: str) -> Mark | None:
        """The place of a key in the file, or of the nearest key above it."""
        return nearest_mark(self.marks, path)
