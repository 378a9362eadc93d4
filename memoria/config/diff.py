"""What differs between two configurations, and what it takes to get from one to the other. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from memoria.config.model import Config, EngineConfig

# Where a daemon is found and what its screen was made for: these need a new daemon.
FIXED = frozenset({"device", "runtime_dir", "log.dir", "log.format", "log.level", "log.requests"})
# Keys that are not where the file has them (`model.py` against `schema.py`).
_AS_WRITTEN = {
    "access.keys": "keys",
    "access.admin_keys": "admin_keys",
    "access.allowed_hosts": "allowed_hosts",
    "access.origins": "cors.origins",
    "limits.body_bytes": "limits.body_mb",
    "logging.dir": "log.dir",
    "logging.format": "log.format",
    "logging.level": "log.level",
    "logging.requests": "log.requests",
    "logging.max_bytes": "log.max_mb",
    "logging.keep": "log.keep",
}
_NOT_COMPARED = frozenset({"path", "engines", "warnings", "marks"})
# What memoria itself does for an engine: its vLLM knows nothing of it.
# What a wish for memory comes to is in the fraction.
_LIVE_IN_ENGINE = frozenset({"max_requests", "filters", "standby", "gpu_memory", "want"})


@dataclass(frozen=True, slots=True)
class Restarts:
    """An engine, and the keys for whose sake it must be started again."""

    engine: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys as the file has them. `live` take effect at once; `fixed` cannot be reloaded at all."""

    live: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    restarts: tuple[Restarts, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.live or self.fixed or self.restarts or self.added or self.removed)


def compare(old: Config, new: Config) -> Changes:
    """`vllm` belongs to every engine. Engines are told apart by their names."""
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
    for field in fields(Config):
        if field.name not in _NOT_COMPARED:
            yield from _leaves(field.name, getattr(old, field.name), getattr(new, field.name))


def _leaves(key: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    # an address is one value, written as one
    if key != "listen" and is_dataclass(old) and is_dataclass(new):
        for field in fields(old):
            yield from _leaves(f"{key}.{field.name}", getattr(old, field.name), getattr(new, field.name))
    else:
        yield key


def _engine_keys(old: EngineConfig, new: EngineConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys that the engine was started with, then those that are memoria's own."""
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
    if "max_num_seqs" in own and "max_requests" in others:  # follows from it
        others.remove("max_requests")
    return tuple(own), tuple(others)
