"""The lines of `memoria requests`: what was asked last -> text. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from memoria.logs import printable

UNKNOWN = "-"
COLORS = {2: "32", 4: "33", 5: "31"}  # by the hundreds of the status

_COLUMNS = "{at:8}  {status:>6}  {total:>8}  {first:>8}  {tokens:>11}  {engine:12} {route}"
HEADER = _COLUMNS.format(
    at="TIME", status="STATUS", total="TOTAL", first="TTFT", tokens="TOKENS", engine="ENGINE", route="ROUTE"
)


def render_requests(row: Mapping[str, Any], *, color: bool) -> str:
    """One line. TOKENS are those of the prompt and of the completion."""
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    line = _COLUMNS.format(
        at=time.strftime("%H:%M:%S", time.localtime(row["at"])),
        status=row["status"],
        total=milliseconds(row["duration_s"]),
        first=milliseconds(row["first_byte_s"]),
        tokens=UNKNOWN if prompt is None else f"{prompt}+{completion or 0}",
        engine=row["engine"] or UNKNOWN,
        route=row["route"] or UNKNOWN,
    )
    for what in ("key", "aborted", "replays"):
        if row[what]:
            line += {"key": f"  key {row['key']}", "aborted": "  aborted", "replays": "  replayed"}[what]
    line = printable(line)
    code = COLORS.get(row["status"] // 100)
    return f"\033[{code}m{line}\033[0m" if color and code else line


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
