"""`memoria logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from memoria.cli.running import running_config
from memoria.engine.logfile import LogFile
from memoria.errors import ConfigError, ExitCode, MemoriaError
from memoria.logs import printable
from memoria.text import suggestion

LOOK = 0.2  # seconds


def show_logs(flag: Path | None, engine: str | None, *, lines: int, follow: bool) -> int:
    """Prints the last lines, then with `follow` what is appended, until interrupted."""
    config = running_config(flag)
    names = [e.name for e in config.engines]
    if engine is not None and engine not in names:
        raise ConfigError(f"there is no engine `{engine}`", hint=suggestion(engine, names))
    shown = [engine] if engine else names
    prefix = max(map(len, shown)) if len(shown) > 1 else 0
    logs = {name: LogFile.of(config.logging, name) for name in shown}
    if not follow and not any(log.path.exists() for log in logs.values()):
        raise MemoriaError(f"no log yet in {config.logging.dir}", hint="start the engines with `memoria run`")
    followers = {name: log.follow() for name, log in logs.items()}
    for name, log in logs.items():
        _print(name, log.tail(lines), prefix)
    while follow:
        for name, follower in followers.items():
            _print(name, follower.new_lines(), prefix)
        try:
            time.sleep(LOOK)
        except KeyboardInterrupt:
            break
    return ExitCode.OK


def _print(name: str, lines: Iterable[str], prefix: int) -> None:
    for line in lines:
        sys.stdout.write((f"{name:{prefix}} | " if prefix else "") + printable(line) + "\n")
    sys.stdout.flush()
