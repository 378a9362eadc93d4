"""`memoria logs`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from memoria.cli.running import check_engine, running_config
from memoria.engine.log_time import since as lines_since
from memoria.engine.logfile import LogFile
from memoria.errors import ExitCode, MemoriaError, UsageError
from memoria.logs import printable

LOOK = 0.2  # seconds
LINES = 100
ALL = 1_000_000  # lines; what is read of a log is bounded by its bytes

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def show_logs(
    flag: Path | None, engine: str | None, *, lines: int | None, follow: bool, since: str | None
) -> int:
    """Prints the last lines, then with `follow` what is appended, until interrupted."""
    now = datetime.now()
    begin = None if since is None else parse_since(since, now)
    config = running_config(flag)
    if engine is not None:
        check_engine(config, engine)
    shown = [engine] if engine else [e.name for e in config.engines]
    prefix = max(map(len, shown)) if len(shown) > 1 else 0
    logs = {name: LogFile.of(config.logging, name) for name in shown}
    if not follow and not any(log.path.exists() for log in logs.values()):
        raise MemoriaError(f"no log yet in {config.logging.dir}", hint="start the engines with `memoria run`")
    followers = {name: log.follow() for name, log in logs.items()}
    for name, log in logs.items():
        history = log.tail(ALL if begin is not None else LINES if lines is None else lines)
        if begin is not None:
            history = lines_since(history, begin, now)
            history = history if lines is None else history[max(0, len(history) - lines) :]
        _print(name, history, prefix)
    while follow:
        for name, follower in followers.items():
            _print(name, follower.new_lines(), prefix)
        try:
            time.sleep(LOOK)
        except KeyboardInterrupt:
            break
    return ExitCode.OK


def parse_since(text: str, now: datetime) -> datetime:
    """`10m` before `now`, or a time of today, or a date with a time. Raises `UsageError`."""
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            clock = datetime.strptime(text, form).time()
        except ValueError:
            continue
        return datetime.combine(now.date(), clock)
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise UsageError(
            f"`{text}` is no time", hint="write 90s, 10m, 2h or 1d, 14:30, or 2026-11-23T14:30"
        ) from None


def _print(name: str, lines: Iterable[str], prefix: int) -> None:
    for line in lines:
        sys.stdout.write((f"{name:{prefix}} | " if prefix else "") + printable(line) + "\n")
    sys.stdout.flush()
