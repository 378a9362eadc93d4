"""A log that cannot be read for a while, a log that is large, and a flood of lines."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memoria.engine.log import Follower, LogFile
from memoria.engine.process import watch as watching
from memoria.engine.process.process import EngineProcess
from memoria.engine.process.table import ProcessTable
from memoria.engine.process.watch import watch
from memoria.vllm.facts import ExitStatus
from tests.fakes import until


class Watched:
    """A process that only waits, and a log that the test writes."""

    def __init__(self, directory: Path, *, max_bytes: int = 10**6) -> None:
        self.log = LogFile(directory / "engine.log", max_bytes=max_bytes, keep=1)
        self.lines: list[str] = []
        descriptor = self.log.open()
        self.process = EngineProcess.spawn(
            ["/bin/sleep", "600"], {}, start_id=uuid.uuid4().hex, log=descriptor, process_table=ProcessTable()
        )
        os.close(descriptor)

    def write(self, text: str) -> None:
        with self.log.path.open("a") as file:
            file.write(text)

    def watch(self, follower: Follower | None = None) -> asyncio.Task[ExitStatus]:
        follower = follower or self.log.follow()
        return asyncio.create_task(watch(self.process, self.log, follower, self.lines.append, lambda: 0.005))

    async def end(self, task: asyncio.Task[ExitStatus]) -> None:
        self.process.kill()
        async with asyncio.timeout(10):
            assert str(await task) == "killed by SIGKILL"
        await self.process.clear()


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """A directory stands in the log's place."""
    aside = path.with_suffix(".aside")
    path.rename(aside)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)


async def test_a_log_that_could_not_be_read_is_read_when_it_can_be_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    task = watched.watch()
    watched.write("first\n")
    await until(lambda: watched.lines == ["first"])
    watched.log.path.chmod(0)
    with unreadable(watched.log.path):
        await until(lambda: "cannot be read" in caplog.text)
        await asyncio.sleep(0.05)
    watched.write("second\n")
    await until(lambda: watched.lines == ["first", "second"])
    assert caplog.text.count("cannot be read") == 1
    await watched.end(task)


async def test_a_large_log_is_rotated_beside_the_loop(tmp_path: Path) -> None:
    watched = Watched(tmp_path, max_bytes=10)
    task = watched.watch()
    watched.write("more than ten bytes\n")
    await until(lambda: watched.log.size() == 0)
    assert (tmp_path / "engine.log.1").read_text() == "more than ten bytes\n"
    await watched.end(task)


async def test_a_flood_of_lines_lets_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TURN", 0.0)  # a turn for every line
    watched, turns = Watched(tmp_path), 0

    async def other() -> None:
        nonlocal turns
        while len(watched.lines) < 1000:
            turns += bool(watched.lines)
            await asyncio.sleep(0)

    task = watched.watch()
    watched.write("a line\n" * 1000)
    await other()
    assert turns >= 900
    await watched.end(task)


async def test_a_disk_that_hangs_does_not_hide_the_end_or_hold_up_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LAST_READ", 0.01)
    hangs, answers = threading.Event(), threading.Event()

    class Hanging(Follower):
        def new_lines(self) -> Iterator[str]:
            hangs.set()
            answers.wait(30)
            yield "late"

    watched = Watched(tmp_path)
    try:
        task = watched.watch(Hanging(watched.log.path))
        await until(hangs.is_set)
        await watched.end(task)
        assert not watched.lines
    finally:
        answers.set()
