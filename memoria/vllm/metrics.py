"""The figures in an engine's `/metrics` that show whether its core makes progress."""

from __future__ import annotations

import re

# Series that only the engine core moves (vllm/v1/metrics/loggers.py). What the API server counts by itself,
# such as requests, would go on while the core hangs.
_CORE_SERIES = re.compile(
    r"^vllm:((?:prompt|generation)_tokens_total|kv_cache_usage_perc)\{[^}]*\} ([-+\w.]+)", re.M
)

# Name and value of each series, in the exposition's order.
Progress = tuple[tuple[str, str], ...]


def progress_of(exposition: str) -> Progress:
    """The core's figures in Prometheus text; empty where vLLM's statistics are switched off."""
    return tuple(_CORE_SERIES.findall(exposition))
