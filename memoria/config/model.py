"""The configuration as the rest of memoria reads it: frozen, complete, every default filled in.

Made by `memoria.config.load`; field names are the file's keys, and keys passed on to vLLM keep vLLM's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from memoria.errors import Mark, Problem

Runner = Literal["generate", "pooling"]
DeviceKind = Literal["cuda", "cpu"]
Transport = Literal["uds", "tcp"]
ConfigPath = tuple[str, ...]


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

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than `localhost` may stand for anything."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    start: float = 600.0  # spawn to ready
    drain: float = 30.0  # requests in flight may finish
    stop: float = 15.0  # SIGTERM to SIGKILL
    release: float = 60.0  # exit to memory back on the device
    hang: float = 120.0  # requests in flight, and the engine core does nothing; 0: never a hang
    idle: float = 120.0  # longest silence of an engine while it answers a request
    connect: float = 2.0  # to an engine
    health: float = 5.0  # one health check


@dataclass(frozen=True, slots=True)
class Restart:
    """`delay = min(cap, initial * 2^n) +- 20 %`; n starts again after `reset` seconds of ready."""

    initial: float = 2.0
    cap: float = 300.0
    reset: float = 600.0
    attempts: int = 5  # starts that never got ready before the engine is failed


@dataclass(frozen=True, slots=True)
class Limits:
    body_bytes: int = 64 * 2**20  # of one request


@dataclass(frozen=True, slots=True)
class Hold:
    """What may wait for engines that are busy or starting, all engines together."""

    seconds: float = 30.0  # each request
    requests: int = 256
    bytes: int = 64 * 2**20  # of request bodies


@dataclass(frozen=True, slots=True)
class Guard:
    """While the tokens of the engine `protect` come further apart than `inter_token_ms` milliseconds, the
    other engines on its GPU get fewer requests at once."""

    protect: str
    inter_token_ms: float


@dataclass(frozen=True, slots=True)
class Filters:
    """What is changed in an engine's JSON bodies: fields left out, then fields set. Never `model`."""

    strip: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask. Hosts and origins are lower case; `*` among them stands for any."""

    keys: Path | None = None  # a `name: key` line each; None: no key is asked for
    allowed_hosts: tuple[str, ...] = ()  # besides the listener's own addresses; without ports
    origins: tuple[str, ...] = ()  # of other sites' pages (CORS)
    admin_keys: Path | None = None  # as `keys`; None: engines are steered over the admin socket alone


@dataclass(frozen=True, slots=True)
class Logging:
    """`dir` holds one file per engine; a file is rotated at `max_bytes`, `keep` old ones stay."""

    level: str = "INFO"
    format: Literal["text", "json"] = "text"
    requests: Literal["none", "text", "json"] = "none"  # the request log
    dir: Path = Path("logs")
    max_bytes: int = 20 * 2**20
    keep: int = 3


# vLLM queues what does not fit into a step. Four waves of requests keep its batches full, also when many end
# at once; more would only wait there instead of here, where clients take turns.
REQUESTS_PER_SEQUENCE = 4
MIN_REQUESTS = 64
VLLM_MAX_NUM_SEQS = 1024  # the largest that vLLM takes by itself, on large GPUs (vllm/engine/arg_utils.py)


def default_max_requests(max_num_seqs: int | None) -> int:
    return max(MIN_REQUESTS, REQUESTS_PER_SEQUENCE * (max_num_seqs or VLLM_MAX_NUM_SEQS))


@dataclass(frozen=True, slots=True)
class Want:
    """What an engine's memory should do: `concurrency` requests of `context` tokens at once, `tokens` in the
    KV cache; `weight` is its share of what all wishes leave."""

    context: int | None = None
    concurrency: float | None = None
    tokens: int | None = None
    weight: Decimal | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine. `gpu_memory_utilization` is exact (a decimal, never a float); 0 until the plan has chosen
    it, where the file has `gpu_memory` (in bytes) or `auto` instead (`memoria.plan.wishes`)."""

    name: str
    model: str
    runner: Runner
    served_model_name: tuple[str, ...]  # never empty; the first is what /v1/models lists, all are accepted
    gpu: int | str
    gpu_memory_utilization: Decimal
    port: int | None
    transport: Transport
    vllm_args: Mapping[
        str, Any
    ]  # vLLM's own flags by their names with underscores, typed keys and `args` merged
    env: Mapping[str, str]
    max_requests: int = MIN_REQUESTS  # in flight; more of them wait
    filters: Filters = Filters()
    standby: bool = False  # a spare process waits at the gate
    gpu_memory: int | None = None
    want: Want | None = None
    learn: bool = False

    @property
    def is_auto(self) -> bool:
        """Whether its fraction is still to be chosen from wishes."""
        return not self.gpu_memory_utilization and self.gpu_memory is None


@dataclass(frozen=True, slots=True)
class Config:
    path: Path | None  # the file; None for the demo
    listen: Address
    device: DeviceKind
    gpu_limit: Decimal
    vllm: str  # "auto", or a path
    timeouts: Timeouts
    restart: Restart
    limits: Limits
    logging: Logging
    runtime_dir: Path  # 0700: sockets and the lock
    engines: tuple[EngineConfig, ...]
    access: Access = Access()
    hold: Hold = Hold()
    guard: Guard | None = None
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    marks: Mapping[ConfigPath, Mark] = field(default_factory=dict, repr=False, compare=False)

    def engine(self, name: str) -> EngineConfig:
        return next(engine for engine in self.engines if engine.name == name)

    def where(self, *path: str) -> Mark | None:
        """The place of a key in the file, or of the nearest key above it."""
        return nearest_mark(self.marks, path)
