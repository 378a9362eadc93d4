"""What vLLM shows of its engine core's progress: figures of `/metrics`, and its own watchdog in the log."""

from __future__ import annotations

import re

# Figures that the engine core alone moves (vllm/v1/metrics/loggers.py). Those that the API server counts by
# itself, such as requests, would go on while the core hangs.
SERIES = re.compile(
    r"^vllm:((?:prompt|generation)_tokens_total|kv_cache_usage_perc)\{[^}]*\} ([-+\w.]+)", re.M
)
# vLLM 0.33 has a watchdog (`watchdog_config`). It is believed only where a second look agrees, so that a line
# which merely mentions one does no harm.
WATCHDOG = re.compile(r"watchdog\b.{0,200}?\b(?:timed out|timeout|stuck|stalled|hang|hung|no progress)", re.I)

Progress = tuple[tuple[str, str], ...]


def progress_of(exposition: str) -> Progress:
    """The figures in an answer of `/metrics`; empty where vLLM's statistics are switched off."""
    return tuple(SERIES.findall(exposition))
