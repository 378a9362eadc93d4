"""What `--since` may be."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from memoria.errors import UsageError

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_since(text: str, now: datetime) -> datetime:
    """`10m` before `now`, or a time of today, or a date with a time, in local time where it names no zone.
    The result is local time without a zone, as logs have it. Raises `UsageError`."""
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            return datetime.min
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            clock = datetime.strptime(text, form).time()
        except ValueError:
            continue
        return datetime.combine(now.date(), clock)
    try:
        at = datetime.fromisoformat(text)
        return at if at.tzinfo is None else at.astimezone().replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise UsageError(
            f"`{text}` is no time", hint="write 90s, 10m, 2h or 1d, 14:30, or 2026-11-23T14:30"
        ) from None
