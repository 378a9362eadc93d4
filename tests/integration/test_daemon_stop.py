"""How the daemon ends: draining, at once, or killed; never is a process of an engine left."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import psutil
import pytest

from tests.faults.report import Figure
from tests.integration.daemon import Box, RunningDaemon, until
from tests.integration.http_client import Streaming
from tests.stub_engine.process import alive

LONG = {"prompt": "a", "max_tokens": 50}
PROCESSES = 6  # of two engines: leader, resource tracker, engine core


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    """All ready; 50 tokens take a second."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.02)
    daemon = box.start()
    daemon.until_ready()
    return daemon


def test_a_stop_lets_streams_finish_and_takes_no_new_request(daemon: RunningDaemon, box: Box) -> None:
    with Streaming(box.ports.main, LONG) as stream:
        stream.event()
        daemon.signal(signal.SIGTERM)
        daemon.told("generation", "draining")
        answer = daemon.ask("POST", "/v1/completions", LONG)
        assert answer.status == 503
        assert answer.error["message"] == "memoria is stopping"
        assert daemon.ask("GET", "/livez").status == 200
        events = stream.rest()
    assert (len(events), events[-1]) == (50, "[DONE]")
    assert daemon.exit_code() == 0
    assert box.survivors() == []
    assert [event.detail for event in box.vllm.events("sigterm")] == ["", ""]


def test_a_second_interrupt_kills_now(daemon: RunningDaemon, box: Box) -> None:
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 10_000}) as stream:
        stream.event()
        daemon.signal(signal.SIGINT)
        daemon.told("generation", "draining")
        daemon.signal(signal.SIGINT)
        assert daemon.exit_code() == 0
        assert stream.rest()[-1] != "[DONE]"
    assert box.survivors() == []
    assert box.vllm.events("sigterm", engine="generation") == []


def test_streams_longer_than_the_drain_are_cut(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("drain: 10", "drain: 0.3"))
    box.vllm.set_faults("generation", token_seconds=0.02)
    daemon = box.start()
    daemon.until_ready()
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 10_000}) as stream:
        stream.event()
        daemon.signal(signal.SIGTERM)
        assert daemon.told("generation", "drain_timed_out") == "requests cut: 1"
        last = stream.rest()[
            -1
        ]  # memoria's, not the engine's, which would end the stream as if it were whole
        assert json.loads(last)["error"]["code"] == "engine_stopping"
        assert daemon.exit_code() == 0
    assert box.survivors() == []


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(box: Box, figure: Figure) -> None:
    box.configure()
    box.vllm.set_faults("embedding", ignore_sigterm=True, grandchild=True)
    daemon = box.start()
    daemon.until_ready()
    began = time.monotonic()
    assert daemon.stop() == 0
    figure(11, "SIGTERM to the end of the daemon, of 1 s grace", time.monotonic() - began, "s")
    assert daemon.told("embedding", "killed") == "ignored SIGTERM for 1 s"
    assert box.survivors() == []


def test_a_stop_during_a_start_leaves_nothing(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("embedding", load_until=str(box.folder / "never"))
    daemon = box.start()
    until(lambda: bool(box.vllm.events("through the gate")))
    until(lambda: len(box.vllm.events("core spawned")) == 2)  # the other waits at the gate
    assert daemon.stop() == 0
    assert box.survivors() == []
    assert list(box.runtime.glob("**/*.sock")) == []


@pytest.mark.parametrize("step", ["import_until", "load_until"], ids=["importing", "behind the gate"])
def test_an_engine_that_is_stopped_while_it_starts_leaves_nothing(
    box: Box, figure: Figure, step: str
) -> None:
    """`memoria stop NAME`: the gate is free for its neighbour, and it can be started again."""
    box.configure()
    box.vllm.set_faults("embedding", **{step: str(box.folder / "never")})
    daemon = box.start()
    event = "core spawned" if step == "load_until" else "spawned"
    until(lambda: bool(box.vllm.events(event, engine="embedding")))
    began = time.monotonic()
    assert box.call("stop", "embedding").returncode == 0
    figure(13, "`memoria stop NAME` during a start took", time.monotonic() - began, "s")
    daemon.told("embedding", "stopped")
    assert [pid for pid in box.survivors() if alive(pid) and engine_of(pid) == "embedding"] == []
    assert [event.pid for event in box.vllm.events(engine="embedding") if alive(event.pid)] == []
    daemon.told("generation", "ready")
    sockets = [path.stem for path in (box.runtime / "engines").glob("*.sock")]
    assert sockets == [psutil.Process(daemon.leader("generation")).environ()["MEMORIA_START"]]
    box.vllm.set_faults("embedding")
    assert box.call("start", "embedding").returncode == 0
    daemon.until_ready()
    assert daemon.stop() == 0
    assert box.survivors() == []


def engine_of(pid: int) -> str:
    return psutil.Process(pid).environ()["MEMORIA_ENGINE"]


def test_no_engine_outlives_a_killed_daemon_and_the_next_start_is_clean(
    daemon: RunningDaemon, box: Box, figure: Figure
) -> None:
    assert len(box.survivors()) == PROCESSES
    began = time.monotonic()
    daemon.kill()
    until(lambda: box.survivors() == [])
    seconds = time.monotonic() - began
    figure(2, "killed to nothing left", seconds, "s")
    assert seconds <= 2
    again = box.start()
    again.until_ready()
    assert again.story("leftover_killed") == []


def test_no_engine_outlives_a_daemon_that_is_killed_while_they_start(box: Box, figure: Figure) -> None:
    box.configure()
    box.vllm.set_faults("embedding", load_until=str(box.folder / "never"))
    daemon = box.start()
    until(lambda: bool(box.vllm.events("through the gate")))
    until(lambda: len(box.vllm.events("core spawned")) == 2)
    began = time.monotonic()
    daemon.kill()
    until(lambda: box.survivors() == [])
    seconds = time.monotonic() - began
    figure(2, "killed to nothing left, while starting", seconds, "s")
    assert seconds <= 2


def test_a_process_that_a_killed_daemon_left_is_killed_and_reported(box: Box, figure: Figure) -> None:
    box.configure()
    marks = {"MEMORIA_GATE": str(box.runtime / "gate.sock"), "MEMORIA_START": "before"}
    with subprocess.Popen(["/bin/sleep", "600"], env=marks) as leftover:
        until(lambda: box.survivors() == [leftover.pid])
        began = time.monotonic()
        daemon = box.start()
        assert daemon.told("memoria", "leftover_killed") == (
            f"pid {leftover.pid}, of a daemon that was killed"
        )
        assert leftover.wait() == -signal.SIGKILL
        figure(16, "start to the leftover's end", time.monotonic() - began, "s")
    daemon.until_ready()
