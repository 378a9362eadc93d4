"""The screen of `memoria run`: on a terminal a line per engine, redrawn; in a pipe a line per transition."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memoria.cli.screens.layout import BOLD, DIM, TONES, paint, wrapped
from memoria.cli.screens.live import Region
from memoria.config.model import EngineConfig
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.logs import printable
from memoria.text import duration, gib, grouped
from memoria.vllm.diagnosis import excerpt

if TYPE_CHECKING:
    from memoria.daemon.daemon import Daemon

REDRAW = 1.0  # seconds, while an engine is starting
FOLLOW = 0.2  # seconds between two looks at the logs
TAIL_SHOWN = 20  # lines


def make_screen(daemon: Daemon, *, verbose: bool, color: bool) -> Screen:
    """JSON logs are their own screen: the journal's records say everything."""
    if daemon.config.logging.format == "json":
        return Screen(daemon)
    if sys.stdout.isatty() and not verbose and os.environ.get("TERM") != "dumb":
        return TerminalScreen(daemon, Region(), color=color)
    return PlainScreen(daemon, verbose=verbose)


class Screen:
    """Shows nothing: the base, and the screen of JSON logs."""

    def __init__(
        self, daemon: Daemon, *, verbose: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._daemon, self._verbose, self._clock = daemon, verbose, clock
        self._width = max(len("memoria"), *(len(engine.name) for engine in daemon.config.engines))
        self._used: dict[str, int | None] = {}
        self._last: dict[str, State] = {}
        self._was_ready = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()

    def _background(self, work: asyncio.Task[None]) -> None:
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def _measure(self, snapshot: EngineSnapshot) -> None:
        """Reads how much of its device a ready engine uses."""
        self._used[snapshot.name] = await self._daemon.collector.used_bytes(snapshot.name)

    def _line(self, name: str, text: str) -> str:
        return row(self._width, name, printable(text))

    def _tail(self, snapshot: EngineSnapshot) -> list[str]:
        if not FACTS[snapshot.state].explained:
            return []
        tail = self._daemon.supervisor.actors[snapshot.name].last_log()
        return explanation(snapshot, [printable(line) for line in excerpt(tail, TAIL_SHOWN)])

    def _all_ready_line(self) -> str | None:
        """Once each time that the last engine gets ready."""
        ready = self._daemon.supervisor.all_ready()
        before, self._was_ready = self._was_ready, ready
        return self._ready_line() if ready and not before else None

    def _ready_line(self) -> str:
        return self._line("memoria", f"all ready   page {self._daemon.url}/")


class PlainScreen(Screen):
    def __enter__(self) -> Self:
        self._print(self._line("memoria", f"proxy on {self._daemon.url}"))
        self._daemon.supervisor.listen(self._changed)
        if self._verbose:
            self._background(asyncio.create_task(self._follow_logs()))
        return self

    def _changed(self, snapshot: EngineSnapshot) -> None:
        if snapshot.state is self._last.get(snapshot.name) or FACTS[snapshot.state].brief:
            return
        if snapshot.name not in self._daemon.supervisor.actors:  # on its way out of the configuration
            return
        if snapshot.state is State.STARTING and snapshot.pid is None:
            return  # shown once it has a process
        if snapshot.state is State.FETCHING and snapshot.fetch is None:
            return
        if snapshot.state is State.READY and snapshot.start_seconds is None:
            return
        if snapshot.state is State.BACKOFF and snapshot.retry_at is None:
            return
        self._last[snapshot.name] = snapshot.state
        if snapshot.state is State.READY:
            self._background(asyncio.create_task(self._show_ready(snapshot)))
        else:
            self._was_ready = self._was_ready and snapshot.is_healthy
            self._show(snapshot)
            if FACTS[snapshot.state].is_away and (line := self._all_ready_line()):
                self._print(line)

    async def _show_ready(self, snapshot: EngineSnapshot) -> None:
        await self._measure(snapshot)
        self._show(snapshot)
        if line := self._all_ready_line():
            self._print(line)

    def _show(self, snapshot: EngineSnapshot) -> None:
        engine = self._daemon.config.engine(snapshot.name)
        used = self._used.get(snapshot.name)
        line = engine_line(snapshot, engine, used, self._clock())
        self._print(self._line(snapshot.name, line), *self._tail(snapshot))

    async def _follow_logs(self) -> None:
        followers = {name: actor.log.follow() for name, actor in self._daemon.supervisor.actors.items()}
        while True:
            for name, follower in followers.items():
                self._print(*(f"{name:{self._width}} | {printable(line)}" for line in follower.new_lines()))
            await asyncio.sleep(FOLLOW)

    def _print(self, *lines: str) -> None:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


class TerminalScreen(Screen):
    def __init__(
        self, daemon: Daemon, region: Region, *, color: bool, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(daemon, clock=clock)
        self._region, self._color = region, color

    def __enter__(self) -> Self:
        self._region.__enter__()
        self._draw()
        self._daemon.supervisor.listen(self._changed)
        self._background(asyncio.create_task(self._redraw()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._draw()
        self._region.__exit__(kind, error, trace)

    def _changed(self, snapshot: EngineSnapshot) -> None:
        if snapshot.state is self._last.get(snapshot.name):
            return
        if snapshot.name not in self._daemon.supervisor.actors:
            return
        self._last[snapshot.name] = snapshot.state
        if snapshot.state is State.READY:
            self._background(asyncio.create_task(self._show_used(snapshot)))
        if tail := self._tail(snapshot):
            engine = self._daemon.config.engine(snapshot.name)
            head = self._line(snapshot.name, engine_line(snapshot, engine, None, self._clock()))
            self._region.print("".join(f"{paint(line, DIM, self._color)}\n" for line in (head, *tail)))
        self._draw()

    async def _show_used(self, snapshot: EngineSnapshot) -> None:
        await self._measure(snapshot)
        self._draw()

    async def _redraw(self) -> None:
        """Only while something changes: an idle daemon costs nothing."""
        while True:
            await asyncio.sleep(REDRAW)
            states = {snapshot.state for snapshot in self._daemon.supervisor.snapshots()}
            if any(state is not State.READY and not FACTS[state].is_away for state in states):
                self._draw()

    def _draw(self) -> None:
        self._region.show(list(self.picture(self._region.size().columns)))

    def picture(self, width: int) -> Iterator[str]:
        """Every engine as it is now, in lines of at most `width` columns."""
        supervisor, now = self._daemon.supervisor, self._clock()
        yield self._line("memoria", f"proxy on {self._daemon.url}")
        for snapshot in supervisor.snapshots():
            engine = self._daemon.config.engine(snapshot.name)
            text = live_line(snapshot, engine, self._used.get(snapshot.name), now)
            name, code = row(self._width, snapshot.name, ""), TONES[FACTS[snapshot.state].tone]
            first, *more = wrapped(text, max(20, width - len(name)))
            yield paint(name, BOLD, self._color) + paint(first, code, self._color)
            yield from (" " * len(name) + paint(line, code, self._color) for line in more)
        if supervisor.all_ready():
            yield paint(self._ready_line(), BOLD, self._color)


# The lines, from snapshots. Pure.


def row(width: int, name: str, text: str) -> str:
    """Columns are two spaces apart, names as wide as the longest."""
    return f"{name:{width}}  {text}"


def engine_line(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    """Follows the engine's name: its state, and the facts that matter in it."""
    return f"{snapshot.state.value:8}  {_facts(snapshot, engine, used_bytes, now)}".rstrip()


def live_line(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    """The same on a terminal, with the progress of a start."""
    if snapshot.state is not State.STARTING or snapshot.phase is None:
        return engine_line(snapshot, engine, used_bytes, now)
    progress = f" {snapshot.percent} %" if snapshot.percent is not None else ""
    waits = f"; {snapshot.detail}" if snapshot.detail else ""
    return f"starting  {snapshot.phase.value}{progress}  {duration(now - snapshot.since)}{waits}"


def _facts(snapshot: EngineSnapshot, engine: EngineConfig, used_bytes: int | None, now: float) -> str:
    match snapshot.state:
        case State.STARTING:
            port = f", port {engine.port}" if engine.port else ""
            return f"pid {snapshot.pid}{port}" if snapshot.pid else ""
        case State.READY:
            return "  ".join(_ready(snapshot, used_bytes))
        case State.BACKOFF:
            wait = max(0, round((snapshot.retry_at or now) - now))
            return f"{snapshot.detail}; retry in {wait} s"
        case _:
            return snapshot.detail


def _ready(snapshot: EngineSnapshot, used_bytes: int | None) -> list[str]:
    parts = []
    if snapshot.start_seconds is not None:
        parts.append(f"{snapshot.start_seconds:.1f} s")
    if used_bytes is not None:
        parts.append(f"{gib(used_bytes)} GiB")
    figures = snapshot.figures
    if figures.kv_tokens is not None:
        kv = f"KV cache {grouped(figures.kv_tokens)} tokens"
        if figures.concurrency is not None and figures.max_model_len is not None:
            kv += f", {figures.concurrency:.1f}x at {figures.max_model_len}"
        parts.append(kv)
    return parts


def explanation(snapshot: EngineSnapshot, tail: list[str]) -> list[str]:
    """Below a failing engine: the next step, and the last lines of its log."""
    lines = []
    if snapshot.diagnosis is not None and snapshot.diagnosis.hint:
        lines.append(f"hint: {snapshot.diagnosis.hint}")
    if tail:
        lines.append(f"from its log (memoria logs {snapshot.name}):")
        lines += [f"  {line}" for line in tail]
    return lines
