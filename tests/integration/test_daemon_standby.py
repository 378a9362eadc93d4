"""A standby: a spare process of an engine at the gate, used when that dies, replaced, never left over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from memoria.engine.process.marker import marked
from memoria.errors import ExitCode
from tests.integration.daemon import Box, RunningDaemon, until

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    box.configure()
    box.file.write_text(box.file.read_text() + "    standby: true\n")
    running = box.start()
    running.until_ready()
    running.told("generation", "standby_waiting")
    running.forget()
    return running


def started(daemon: RunningDaemon) -> int:
    return len(daemon.box.vllm.events("spawned", engine="generation"))


def test_a_dead_engine_is_followed_by_its_standby_at_once(daemon: RunningDaemon) -> None:
    before = daemon.leader("generation")
    assert started(daemon) == 2
    passed = daemon.box.vllm.events("through the gate", engine="generation")
    assert len(passed) == 1  # the standby has not touched the device
    os.kill(before, signal.SIGKILL)
    daemon.told("generation", "standby_took_over")
    daemon.told("generation", "ready")
    assert daemon.story("backoff") == []
    assert daemon.leader("generation") != before
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200
    daemon.told("generation", "standby_waiting")  # the next one
    assert started(daemon) == 3


def test_status_shows_it_with_its_memory(daemon: RunningDaemon) -> None:
    engine = daemon.engine("generation")
    assert engine.standby == "waiting"
    assert engine.standby_bytes is not None
    assert engine.standby_bytes > 10**6
    assert daemon.engine("embedding").standby is None
    shown = daemon.box.call("status").stdout
    assert "generation: standby waits at the gate, " in shown


def test_a_standby_that_dies_is_replaced_and_nobody_notices(daemon: RunningDaemon) -> None:
    leader = daemon.leader("generation")
    spare = next(e.pid for e in daemon.box.vllm.events("spawned", engine="generation") if e.pid != leader)
    os.kill(spare, signal.SIGKILL)
    assert daemon.told("generation", "standby_ended").startswith("killed by SIGKILL; another one in ")
    daemon.told("generation", "standby_waiting")
    assert daemon.leader("generation") == leader
    assert daemon.story("releasing") == []


def test_a_crash_loop_is_slowed_down_all_the_same(daemon: RunningDaemon) -> None:
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "standby_waiting")
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "backoff")
    daemon.told("generation", "ready", times=2)


def test_it_ends_with_the_daemon(daemon: RunningDaemon) -> None:
    assert daemon.stop() == 0
    assert daemon.box.survivors() == []


def test_it_dies_with_a_killed_daemon(daemon: RunningDaemon) -> None:
    daemon.kill()
    until(lambda: daemon.box.survivors() == [])


def test_a_reload_takes_it_away_and_brings_it_back(box: Box, daemon: RunningDaemon) -> None:
    text, leader = box.file.read_text(), daemon.leader("generation")
    gate = str(box.runtime / "gate.sock")
    before = len(marked("MEMORIA_GATE", gate))
    box.file.write_text(text.replace("standby: true", "standby: false"))
    assert box.call("reload").stdout == "changed: generation.standby\n"
    until(lambda: daemon.engine("generation").standby is None and len(marked("MEMORIA_GATE", gate)) < before)
    box.file.write_text(text)
    assert box.call("reload").stdout == "changed: generation.standby\n"
    daemon.told("generation", "standby_waiting")
    assert daemon.leader("generation") == leader


def test_a_standby_of_old_settings_is_not_used(box: Box, daemon: RunningDaemon) -> None:
    box.file.write_text(box.file.read_text().replace("standby: true", "standby: true\n    max_num_seqs: 7"))
    assert box.call("reload").returncode == ExitCode.OK
    daemon.told("generation", "ready")
    command = Path(f"/proc/{daemon.leader('generation')}/cmdline").read_text()
    assert "--max-num-seqs\x007" in command
