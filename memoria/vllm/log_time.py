"""When a line of a vLLM log was written."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

# `INFO 11-23 14:22:28 [core.py:402]`: no year, local time (vllm/logging_utils)
_STAMP = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) \[")


def time_of(line: str, now: datetime) -> datetime | None:
    """None for a line without a time. Of the years that it may mean, the last that is not in the future."""
    match = _STAMP.search(line[:200])
    if match is None:
        return None
    try:
        at = datetime(now.year, *(int(part) for part in match.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    return at if at <= now + timedelta(days=1) else at.replace(year=now.year - 1)
