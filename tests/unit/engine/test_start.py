"""What is true of one start only."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from memoria.engine import start as starting
from memoria.engine.log import LogFile
from memoria.engine.start import Start
from memoria.vllm.diagnosis import Diagnosis
from tests.fakes import FakeHost


@pytest.fixture
def start(tmp_path: Path) -> Start:
    log = LogFile(tmp_path / "engine.log", max_bytes=10**6, keep=1)
    return Start(FakeHost(log.path, ""), log)


def test_the_time_to_ready_is_from_the_spawn(start: Start) -> None:
    assert start.seconds_to_ready is None
    start.spawned_at = 10.0
    assert start.seconds_to_ready is None
    start.ready_at, start.exited_at = 30.0, 99.0
    assert start.seconds_to_ready == 20.0


def test_the_time_of_ready_ends_with_the_process_not_with_its_memory(start: Start) -> None:
    start.spawned_at, start.exited_at = 10.0, 30.0
    assert start.seconds_of_ready is None
    start.ready_at, start.exited_at = 30.0, 90.0
    assert start.seconds_of_ready == 60.0


def test_only_a_start_that_was_never_ready_can_be_spoiled(start: Start) -> None:
    start.ticket = start.host.ticket()
    start.ticket.spoiled = True
    found = Diagnosis("exited 1", "", "no")
    assert (start.crash(found).spoiled, start.crash(found).retryable) == (True, "no")
    start.ready_at, start.exited_at = 10.0, 11.0
    assert not start.crash(found).spoiled


async def test_the_log_that_it_was_diagnosed_by_is_not_read_again(start: Start) -> None:
    start.log.path.write_text("its last line\n")
    await start.diagnose("engine", None)
    start.log.path.unlink()
    assert start.last_log() == ["its last line"]


async def test_a_log_on_a_disk_that_hangs_does_not_hold_up_the_diagnosis(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(starting, "LONGEST_LOOK", 0.01)
    monkeypatch.setattr(start.log, "tail", lambda *_: answers.wait(30))
    try:
        assert (await start.diagnose("engine", None)).cause
    finally:
        answers.set()
