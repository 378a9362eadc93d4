"""The differences between two configurations, and what a reload must do about each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from memoria.config.model import Access, Config, EngineConfig
from memoria.config.values import Section, keys

# Where clients find the daemon, and how its logs are set up at its start.
FIXED = frozenset({"device", "mps", "runtime_dir", "log.dir", "log.format", "log.level", "log.requests"})
# Facts that the file has elsewhere.
_AS_WRITTEN = {
    "access.keys": "keys",
    "access.admin_keys": "admin_keys",
    "access.allowed_hosts": "allowed_hosts",
    "access.origins": "cors.origins",
    "tls_files": "tls",
}
_NOT_COMPARED = frozenset({"path", "engines", "warnings", "marks"})
# What memoria itself does for an engine, without its vLLM. Wishes for memory end up in the fraction.
_LIVE_IN_ENGINE = frozenset(
    {"max_requests", "filters", "standby", "gpu_memory", "want"}
    | {"on_demand", "ttl", "sleep_level", "preload", "priority"}
)


@dataclass(frozen=True, slots=True)
class Restarts:
    """An engine, and the changed keys that require its restart."""

    engine: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys as written in the file. `live` ones take effect at once; `fixed` ones need a new daemon."""

    live: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    restarts: tuple[Restarts, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.live or self.fixed or self.restarts or self.added or self.removed)


def compare(old: Config, new: Config) -> Changes:
    """Compares engines by name. `vllm` counts as a key of every engine."""
    top = tuple(_AS_WRITTEN.get(key, key) for key in _differing(old, new))
    before = {engine.name: engine for engine in old.engines}
    after = {engine.name: engine for engine in new.engines}
    live, restarts = [key for key in top if key not in FIXED and key != "vllm"], []
    for name in (name for name in after if name in before):
        own, others = _engine_keys(before[name], after[name])
        live += [f"{name}.{key}" for key in others]
        if "vllm" in top:
            own = ("vllm", *own)
        if own:
            restarts.append(Restarts(name, own))
    return Changes(
        live=tuple(live),
        fixed=tuple(key for key in top if key in FIXED),
        restarts=tuple(restarts),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def _differing(old: Config, new: Config) -> Iterator[str]:
    for name, field in keys(Config).items():
        if name not in _NOT_COMPARED:
            yield from _leaves(name, getattr(old, field.name), getattr(new, field.name))


def _leaves(key: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, (Section, Access)) and isinstance(new, (Section, Access)):
        for name, field in keys(type(old)).items():
            yield from _leaves(f"{key}.{name}", getattr(old, field.name), getattr(new, field.name))
    else:
        yield key


def _engine_keys(old: EngineConfig, new: EngineConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The changed keys: those that vLLM is started with, then those that take effect without a restart."""
    own, others = [], []
    for field in fields(EngineConfig):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "vllm_args":
            own += sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        elif field.name in _LIVE_IN_ENGINE or (
            field.name == "port" and old.transport == new.transport == "uds"
        ):
            others.append(field.name)
        else:
            own.append(field.name)
    if "max_num_seqs" in own and "max_requests" in others:  # its default depends on it
        others.remove("max_requests")
    return tuple(own), tuple(others)
