"""`memoria logs`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from heapq import merge
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from memoria.cli.client import find_daemon, request
from memoria.cli.options import Options, command, complete_engine
from memoria.cli.screens.layout import paint
from memoria.engine.log import LogReader
from memoria.errors import ExitCode, MemoriaError, Problem, UnavailableError, UsageError
from memoria.logs import printable
from memoria.text import suggestion
from memoria.vllm.log_lines import time_of

if TYPE_CHECKING:
    from memoria.config.file import Place

FOLLOW = 0.2  # seconds between two looks
LINES = 100
PATIENCE = 2.0  # seconds for a daemon that hangs; then the configuration says where the logs are
UNKNOWN = datetime.min
LOOK_AHEAD = 200  # first lines without a time that get the time of the line below them
COLORS = ("36", "33", "32", "35", "34")  # one engine after the other, as docker compose does
_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@command()
@click.argument("engine", required=False, shell_complete=complete_engine)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    help=f"Lines of history  [default: {LINES}, or all with --since]",
)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("--since", metavar="WHEN", help="Only lines since then: 10m, 2h, 1d, or a time such as 14:30.")
def logs(options: Options, engine: str | None, lines: int | None, follow: bool, since: str | None) -> int:
    """Show the logs of one engine or of all, merged by time. Works without a running daemon, too.

    \b
    Example:  memoria logs generation -f --since 10m
    """
    begin = None if since is None else parse_since(since, datetime.now())
    files = log_files(find_daemon(options.config), engine)
    if not follow and not any(map(_exists, files.values())):
        folder = next(iter(files.values())).parent
        raise MemoriaError(f"no log yet in {folder}", hint="start the engines with `memoria run`")
    if lines is None and begin is None:
        lines = LINES
    readers = [_Log(name, file, lines, begin) for name, file in files.items()]
    to_screen = render(list(files), as_json=options.json, color=options.colored)
    try:
        _print([log.history(whole=not follow) for log in readers], to_screen)
        while follow:
            _print([log.new_lines() for log in readers], to_screen)
            time.sleep(FOLLOW)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def parse_since(text: str, now: datetime) -> datetime:
    """Parses `10m` (before `now`), a time of today, or a date with a time, in local time unless it names a
    zone. Returns naive local time, as in logs. Raises `UsageError`."""
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
            f"`{text}` is not a time", hint="write 90s, 10m, 2h or 1d, 14:30, or 2026-11-23T14:30"
        ) from None


def log_files(place: Place, engine: str | None) -> dict[str, Path]:
    """The log of one engine, or of all, by name: as the daemon says, or if none answers, as the configuration
    does. Raises `UsageError` for an unknown engine."""
    try:
        answer = request(place.admin_socket, "/logs", patience=PATIENCE)
        files = {str(log["engine"]): Path(log["file"]) for log in answer["logs"]}
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
    """Raises `UnavailableError` if the log cannot be read."""

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


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # opening it reports the reason
        return True


def _print(logs: Iterable[Iterator[Line]], to_screen: Callable[[Line], str]) -> None:
    for line in merge(*logs, key=attrgetter("at")):
        sys.stdout.write(to_screen(line) + "\n")
    sys.stdout.flush()


# The lines. Pure.


class Line(NamedTuple):
    """`at` is when it was written, or the line above it; `UNKNOWN` if neither says."""

    at: datetime
    engine: str
    text: str


def dated(engine: str, texts: Iterable[str], now: datetime) -> Iterator[Line]:
    """Dates lines with times that never go back; a line without one has that of the line above."""
    texts, first = iter(texts), []
    at = UNKNOWN
    for text in texts:
        first.append(text)
        found = time_of(text, now)
        if found is not None:
            at = found
        if found is not None or len(first) == LOOK_AHEAD:
            break
    for text in chain(first, texts):
        at = max(at, time_of(text, now) or at)
        yield Line(at, engine, text)


def render(engines: Sequence[str], *, as_json: bool, color: bool) -> Callable[[Line], str]:
    """Returns the function that turns a log's line into the screen's, with the engine's name if there are
    several."""
    if as_json:
        return _as_json
    if len(engines) == 1:
        return lambda line: printable(line.text)
    width = max(map(len, engines))
    names = {
        name: paint(f"{name:{width}} |", COLORS[number % len(COLORS)], color)
        for number, name in enumerate(engines)
    }
    return lambda line: f"{names[line.engine]} {printable(line.text)}"


def _as_json(line: Line) -> str:
    at = None if line.at == UNKNOWN else line.at.astimezone().isoformat(timespec="seconds")
    return json.dumps({"engine": line.engine, "time": at, "line": line.text})
