"""`memoria logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from heapq import merge
from operator import attrgetter
from pathlib import Path

from memoria.cli.client import ask
from memoria.cli.commands.running import running
from memoria.cli.screens.logs import Line, dated, render
from memoria.cli.since import parse_since
from memoria.config.file import Place
from memoria.engine.log.reader import LogReader
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError, UsageError
from memoria.text import suggestion

LOOK = 0.2  # seconds
LINES = 100
PATIENCE = 2.0  # seconds for a daemon that hangs; then the configuration says where the logs are


def show_logs(
    flag: Path | None,
    engine: str | None,
    *,
    lines: int | None,
    follow: bool,
    since: str | None,
    as_json: bool,
    color: bool,
) -> int:
    """Prints the last lines of each log, in the order of their times, then with `follow` what is appended,
    until interrupted. Raises `UnavailableError` where a log may not be read."""
    begin = None if since is None else parse_since(since, datetime.now())
    files = log_files(running(flag), engine)
    if not follow and not any(map(_is_there, files.values())):
        folder = next(iter(files.values())).parent
        raise MemoriaError(f"no log yet in {folder}", hint="start the engines with `memoria run`")
    if lines is None and begin is None:
        lines = LINES
    logs = [_Log(name, file, lines, begin) for name, file in files.items()]
    shown = render(list(files), as_json=as_json, color=color)
    try:
        _print([log.history(whole=not follow) for log in logs], shown)
        while follow:
            _print([log.new_lines() for log in logs], shown)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def log_files(place: Place, engine: str | None) -> dict[str, Path]:
    """Of all engines, or of one, by their names: as the daemon says, or where none answers as the
    configuration does. Raises `UsageError` for an engine that is not there."""
    try:
        told = ask(place.admin_socket, "/logs", patience=PATIENCE)
        files = {str(log["engine"]): Path(log["file"]) for log in told["logs"]}
    except (MemoriaError, LookupError, TypeError):
        names = place.engines or sorted(
            file.stem for file in place.log_dir.glob("*.log") if "." not in file.stem
        )
        files = {name: place.log_dir / f"{name}.log" for name in names}
    if not files:
        raise MemoriaError(f"no log yet in {place.log_dir}", hint="start the engines with `memoria run`")
    if engine is None:
        return files
    if engine not in files:
        raise UsageError(f"there is no engine `{engine}`", hint=suggestion(engine, files))
    return {engine: files[engine]}


class _Log:
    def __init__(self, name: str, file: Path, lines: int | None, begin: datetime | None) -> None:
        self._name, self._file = name, file
        try:
            self._reader = LogReader(file, lines=lines, begin=begin)
        except OSError as error:
            raise self._unreadable(error) from None

    def history(self, *, whole: bool) -> Iterator[Line]:
        return self._guarded(self._reader.history(whole=whole))

    def new_lines(self) -> Iterator[Line]:
        return self._guarded(self._reader.new_lines())

    def _guarded(self, texts: Iterator[str]) -> Iterator[Line]:
        try:
            yield from dated(self._name, texts, datetime.now())
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> UnavailableError:
        what = f"cannot read the log of `{self._name}`: {(error.strerror or str(error)).lower()}"
        hint = (
            "run this command as the user that runs memoria" if isinstance(error, PermissionError) else None
        )
        return UnavailableError(Problem(what, (str(self._file),), hint))


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # whoever opens it is told why not
        return True


def _print(logs: Iterable[Iterator[Line]], shown: Callable[[Line], str]) -> None:
    for line in merge(*logs, key=attrgetter("at")):
        sys.stdout.write(shown(line) + "\n")
    sys.stdout.flush()
