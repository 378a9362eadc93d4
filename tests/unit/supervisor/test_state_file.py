"""The state file: what a killed daemon leaves is found, and a process id that changed hands is left alone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.supervisor.runtime_dir import RuntimeDir, StateFile, started

SLEEPS = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, without any marker."""
    popen = subprocess.Popen(SLEEPS, start_new_session=True)
    yield popen
    popen.kill()
    popen.wait()


def left_by_a_killed_daemon(path: Path, pid: int) -> None:
    before = StateFile(path)
    before.intend("run1", "embedding")
    before.spawned("run1", pid)


def forge(path: Path, **changes: object) -> None:
    state = json.loads(path.read_text())
    state["spawned"][0] |= changes
    path.write_text(json.dumps(state))


def test_the_intent_is_written_before_there_is_a_process(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    StateFile(path).intend("run1", "embedding")
    (entry,) = json.loads(path.read_text())["spawned"]
    assert entry == {"run": "run1", "engine": "embedding", "pid": None, "started": None}
    assert StateFile(path).leftovers() == []


def test_a_leftover_is_found_verified_and_removed(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "state.json"
    left_by_a_killed_daemon(path, process.pid)
    after = StateFile(path)
    assert [entry.engine for entry in after.leftovers()] == ["embedding"]
    assert after.kill_leftovers() == [process.pid]
    assert process.wait(10) == -signal.SIGKILL
    assert after.leftovers() == []


def test_its_group_is_removed_with_it(tmp_path: Path) -> None:
    script = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
    leader = subprocess.Popen(
        (sys.executable, "-S", "-c", script, *SLEEPS),
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert leader.stdout is not None
    child = os.pidfd_open(int(leader.stdout.readline()))
    left_by_a_killed_daemon(tmp_path / "state.json", leader.pid)
    assert StateFile(tmp_path / "state.json").kill_leftovers() == [leader.pid]
    with leader:
        assert leader.wait(10) == -signal.SIGKILL
    assert select.select([child], [], [], 10)[0]
    os.close(child)


def test_a_process_id_that_changed_hands_is_not_touched(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "state.json"
    left_by_a_killed_daemon(path, process.pid)
    forge(path, started=(started(process.pid) or 0) - 1)
    assert StateFile(path).kill_leftovers() == []
    assert process.poll() is None


def test_a_process_of_another_boot_is_not_touched(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "state.json"
    left_by_a_killed_daemon(path, process.pid)
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    assert StateFile(path, boot_id=other).kill_leftovers() == []
    assert process.poll() is None


def test_what_has_ended_is_forgotten(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    state = StateFile(tmp_path / "state.json")
    state.intend("run1", "embedding")
    state.spawned("run1", process.pid)
    state.ended("run1")
    state.ended("run1")
    assert StateFile(tmp_path / "state.json").leftovers() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot": 1', '{"spawned": [{"what": 1}]}', "\0"])
def test_a_damaged_file_names_no_process(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    state = StateFile(path)
    assert state.kill_leftovers() == []
    assert json.loads(path.read_text())["spawned"] == []


def test_a_file_that_cannot_be_written_stops_no_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = StateFile(tmp_path / "not there" / "state.json")
    state.intend("run1", "embedding")
    assert "cannot be written" in caplog.text


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    popen = subprocess.Popen((sys.executable, "-S", "-c", ""))
    os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
    assert started(popen.pid) is None
    popen.wait()


def test_the_next_daemon_removes_and_tells(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    left_by_a_killed_daemon(tmp_path / "state.json", process.pid)
    with RuntimeDir(tmp_path) as runtime:
        assert runtime.killed == [process.pid]
    assert process.wait(10) == -signal.SIGKILL
