"""The figures in an engine's `/metrics` (vllm/v1/metrics/loggers.py): its load, and whether its core makes
progress."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memoria.config.model import Runner
from memoria.vllm.facts import Progress

_SERIES = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|(?:prompt|generation)_tokens_total)"
    rb"\{[^}]*\} ([-+\w.]+)",
    re.M,
)
# Only the engine core moves these. What the API server counts by itself, such as requests, would go on while
# the core hangs.
_OF_THE_CORE = (b"prompt_tokens_total", b"generation_tokens_total", b"kv_cache_usage_perc")


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """None where the engine does not report it. `kv_usage`: 0 to 1; tokens: since its start."""

    running: int | None
    waiting: int | None
    kv_usage: float | None
    read_tokens: float | None
    written_tokens: float | None

    def tokens(self, runner: Runner) -> float | None:
        """What the engine's speed is measured in."""
        return self.written_tokens if runner == "generate" else self.read_tokens


def load_of(exposition: bytes) -> EngineLoad:
    """Every core of the engine has a line: they are summed; of the usages the highest counts."""
    found: dict[bytes, list[float]] = {}
    for name, value in _SERIES.findall(exposition):
        found.setdefault(name, []).append(float(value))
    summed = {name: sum(values) for name, values in found.items()}
    running, waiting = summed.get(b"num_requests_running"), summed.get(b"num_requests_waiting")
    return EngineLoad(
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        max(found.get(b"kv_cache_usage_perc", ()), default=None),
        summed.get(b"prompt_tokens_total"),
        summed.get(b"generation_tokens_total"),
    )


def progress_of(exposition: bytes) -> Progress:
    """The core's figures; empty where vLLM's statistics are switched off."""
    return tuple(one for one in _SERIES.findall(exposition) if one[0] in _OF_THE_CORE)
