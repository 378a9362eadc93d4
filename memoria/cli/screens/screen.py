"""What `memoria run` shows: on a terminal one line per engine, redrawn; in a pipe one line per transition."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memoria.cli.screens.layout import STYLES
from memoria.cli.screens.run import engine_line, explanation, live_line, row
from memoria.engine.lifecycle import FACTS, State
from memoria.engine.snapshot import EngineSnapshot
from memoria.logs import printable
from memoria.vllm.diagnosis import excerpt

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from memoria.daemon.daemon import Daemon

REDRAW = 1.0  # seconds, while an engine is starting
TAIL_SHOWN = 20


def make_screen(daemon: Daemon, *, verbose: bool, color: bool) -> Screen:
    """JSON logs are their own screen: there the journal's records tell everything."""
    if daemon.config.logging.format == "json":
        return Screen(daemon)
    if sys.stdout.isatty() and not verbose:
        from rich.console import Console

        console = Console(no_color=not color, highlight=False, markup=False, emoji=False)
        return TerminalScreen(daemon, console)
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
        self._told_ready = False
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
        """What a ready engine holds of its device."""
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
        told, self._told_ready = self._told_ready, ready
        return self._ready_line() if ready and not told else None

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
            return  # told once it has a process
        if snapshot.state is State.READY and snapshot.start_seconds is None:
            return
        if snapshot.state is State.BACKOFF and snapshot.retry_at is None:
            return
        self._last[snapshot.name] = snapshot.state
        if snapshot.state is State.READY:
            self._background(asyncio.create_task(self._tell_ready(snapshot)))
        else:
            self._told_ready = False
            self._tell(snapshot)

    async def _tell_ready(self, snapshot: EngineSnapshot) -> None:
        await self._measure(snapshot)
        self._tell(snapshot)
        if line := self._all_ready_line():
            self._print(line)

    def _tell(self, snapshot: EngineSnapshot) -> None:
        engine = self._daemon.config.engine(snapshot.name)
        used = self._used.get(snapshot.name)
        line = engine_line(snapshot, engine, used, self._clock())
        self._print(self._line(snapshot.name, line), *self._tail(snapshot))

    async def _follow_logs(self) -> None:
        followers = {name: actor.log.follow() for name, actor in self._daemon.supervisor.actors.items()}
        while True:
            for name, follower in followers.items():
                self._print(*(f"{name:{self._width}} | {printable(line)}" for line in follower.new_lines()))
            await asyncio.sleep(0.2)

    def _print(self, *lines: str) -> None:
        for line in lines:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


class TerminalScreen(Screen):
    def __init__(self, daemon: Daemon, console: Console, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(daemon, clock=clock)
        from rich.live import Live

        self._console = console
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> Self:
        self._live.start()
        self._draw()
        self._daemon.supervisor.listen(self._changed)
        self._background(asyncio.create_task(self._redraw()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._draw()
        self._live.stop()

    def _changed(self, snapshot: EngineSnapshot) -> None:
        if snapshot.state is self._last.get(snapshot.name):
            return
        if snapshot.name not in self._daemon.supervisor.actors:
            return
        self._last[snapshot.name] = snapshot.state
        if snapshot.state is State.READY:
            self._background(asyncio.create_task(self._measured(snapshot)))
        if tail := self._tail(snapshot):
            engine = self._daemon.config.engine(snapshot.name)
            told = engine_line(snapshot, engine, None, self._clock())
            for line in (self._line(snapshot.name, told), *tail):
                self._console.print(line, style="dim", soft_wrap=True)
        self._draw()

    async def _measured(self, snapshot: EngineSnapshot) -> None:
        await self._measure(snapshot)
        self._draw()

    async def _redraw(self) -> None:
        """Only while something moves: an idle daemon costs nothing."""
        while True:
            await asyncio.sleep(REDRAW)
            if any(s.state is not State.READY for s in self._daemon.supervisor.snapshots()):
                self._draw()

    def _draw(self) -> None:
        self._live.update(self.picture(), refresh=True)

    def picture(self) -> Text:
        """What is redrawn: every engine as it is now."""
        from rich.text import Text

        supervisor, now = self._daemon.supervisor, self._clock()
        text = Text(self._line("memoria", f"proxy on {self._daemon.url}") + "\n")
        for snapshot in supervisor.snapshots():
            engine = self._daemon.config.engine(snapshot.name)
            line = live_line(snapshot, engine, self._used.get(snapshot.name), now)
            text.append(row(self._width, snapshot.name, ""), style="bold")
            text.append(printable(line) + "\n", style=STYLES[FACTS[snapshot.state].tone])
        if supervisor.all_ready():
            text.append(self._ready_line(), style="bold")
        return text
