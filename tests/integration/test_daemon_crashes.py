"""Engines that die: started again after a delay, or given up with a reason; the neighbour notices nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.report import Figure
from tests.faults.traffic import Traffic
from tests.integration.daemon import Box, RunningDaemon, until
from tests.integration.http_client import Streaming
from tests.stub_engine.process import alive

LONGEST_BACKOFF = 0.2 * 1.2  # of the box's configuration, with its jitter
WHOLE = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[RunningDaemon]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.02)
    daemon = box.start()
    yield daemon
    assert daemon.stop() == 0
    assert box.survivors() == []
    box.close()


@pytest.fixture
def daemon(running: RunningDaemon) -> RunningDaemon:
    """All ready; one daemon for all tests that ask for it."""
    running.box.vllm.set_faults("embedding")
    running.until_ready()
    running.forget()
    return running


def test_a_killed_leader_takes_its_core_along_and_is_started_again(
    daemon: RunningDaemon, figure: Figure
) -> None:
    before, neighbour, core = (
        daemon.engine("embedding"),
        daemon.leader("generation"),
        daemon.core("embedding"),
    )
    assert before.start_seconds is not None
    began = time.monotonic()
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    assert daemon.told("embedding", "releasing") == "killed by SIGKILL"
    daemon.told("embedding", "backoff")
    daemon.told("embedding", "ready")
    seconds = time.monotonic() - began
    figure(1, "killed to ready, stub", seconds, "s")
    assert seconds <= before.start_seconds + 3 + LONGEST_BACKOFF
    assert not alive(core)
    assert daemon.engine("embedding").restarts == before.restarts + 1
    assert daemon.leader("embedding") != before.pid
    assert daemon.leader("generation") == neighbour
    assert daemon.ask("POST", "/v1/embeddings", {"input": "a"}).status == 200


def test_a_killed_engine_leaves_no_socket(daemon: RunningDaemon) -> None:
    engines = daemon.box.runtime / "engines"
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "ready")
    assert len(list(engines.iterdir())) == 2


def test_a_killed_core_ends_its_leader_with_0_and_that_is_a_crash_too(daemon: RunningDaemon) -> None:
    neighbour = daemon.leader("generation")
    os.kill(daemon.core("embedding"), signal.SIGKILL)
    assert daemon.told("embedding", "releasing") == "exited 0"
    assert "engine core died" in daemon.told("embedding", "backoff")
    daemon.told("embedding", "ready")
    assert daemon.leader("generation") == neighbour


def test_an_engine_whose_core_is_dead_is_asked_nothing_more(daemon: RunningDaemon) -> None:
    """A real leader takes a second or two to end after its core, and accepts nothing meanwhile."""
    daemon.box.vllm.set_faults("embedding", leader_stays=1.5)
    daemon.forget()
    assert daemon.box.call("restart", "embedding").returncode == 0
    daemon.box.vllm.set_faults("embedding")
    daemon.forget()
    os.kill(daemon.core("embedding"), signal.SIGKILL)
    assert daemon.told("embedding", "suspect") == "its engine core is gone"
    with Traffic(daemon.box.ports.main, embeddings=2) as traffic:
        assert daemon.told("embedding", "releasing") == "exited 0"
        daemon.told("embedding", "ready")
    assert traffic.failures() == {}


def test_a_dead_core_leaves_the_neighbours_streams_alone(daemon: RunningDaemon, figure: Figure) -> None:
    """As when the kernel's OOM killer takes one process."""
    asked = 0
    with Streaming(daemon.box.ports.main, {"prompt": "a", "max_tokens": 60}) as stream:
        stream.event()
        os.kill(daemon.core("embedding"), signal.SIGKILL)
        daemon.told("embedding", "releasing")
        while daemon.engine("embedding").state != "ready":
            assert daemon.ask("POST", "/v1/completions", WHOLE).status == 200
            assert daemon.ask("GET", "/livez").status == 200
            asked += 1
        assert len(stream.rest()) == 60
    figure(14, "neighbour's requests until it is ready again, all answered", asked)


def test_requests_to_an_engine_that_is_down_are_told_why_and_when_to_come_back(box: Box) -> None:
    box.configure(top="hold: {seconds: 0}")
    daemon = box.start()
    daemon.until_ready()
    go = box.folder / "go"
    box.vllm.set_faults("embedding", import_until=str(go))
    daemon.forget()
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "starting")
    for port in (box.ports.main, box.ports.embedding):
        answer = daemon.ask("POST", "/v1/embeddings", {"input": "a"}, port=port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.error["code"] == "engine_not_ready"
        assert answer.error["message"].startswith("engine `embedding` is starting")
    assert daemon.ask("POST", "/v1/completions", WHOLE).status == 200
    health = daemon.ask("GET", "/health")
    assert health.status == 503
    assert health.json["status"] == "degraded"
    assert health.json["services"] == {"router": "healthy", "embedding": "unhealthy", "generation": "healthy"}
    assert daemon.ask("GET", "/readyz").text == "embedding: starting\n"
    assert [model["id"] for model in daemon.ask("GET", "/v1/models").json["data"]] == ["writer"]
    go.touch()
    daemon.told("embedding", "ready")


def test_a_request_to_an_engine_that_restarts_is_held_until_it_is_ready(daemon: RunningDaemon) -> None:
    box = daemon.box
    go = box.folder / "held"
    box.vllm.set_faults("embedding", import_until=str(go))
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "starting")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(daemon.ask, "POST", "/v1/embeddings", {"input": "a"})
        until(lambda: daemon.engine("embedding").held == 1)
        go.touch()
        assert answer.result().status == 200
    daemon.told("embedding", "ready")


def test_an_engine_that_was_ready_once_is_retried_beyond_the_attempts(daemon: RunningDaemon) -> None:
    daemon.box.vllm.set_faults("embedding", fail_at="importing")
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    assert "the stub was told to fail" in daemon.told("embedding", "backoff", times=4)


def test_an_engine_that_never_gets_ready_is_given_up_with_its_reason(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("generation", fail_at="loading")
    daemon = box.start()
    reason = daemon.told("generation", "failed")
    assert reason == "RuntimeError: the stub was told to fail; never ready in 2 starts"
    assert len(box.vllm.events("spawned", engine="generation")) == 2
    daemon.told("embedding", "ready")
    shown = box.call("status")
    assert shown.returncode == 1
    assert f"generation: {reason}" in shown.stdout
    answer = daemon.ask("POST", "/v1/completions", WHOLE)
    assert answer.status == 503
    assert answer.error["message"] == f"engine `generation` has failed: {reason}"
    assert daemon.ask("POST", "/v1/embeddings", {"input": "a"}).status == 200
    assert daemon.stop() == 0


def test_a_configuration_error_is_given_up_at_once(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text() + "    args: {no_such_flag: 1}\n")
    daemon = box.start()
    reason = daemon.told("generation", "failed")
    assert "--no-such-flag" in reason
    assert reason.endswith("trying again would not help")
    assert len(box.vllm.events("spawned", engine="generation")) == 1
    daemon.told("embedding", "ready")


def test_a_start_that_hangs_is_ended_by_its_timeout(box: Box, figure: Figure) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("start: 20", "start: 2"))
    box.vllm.set_faults("generation", hang_at="loading")
    daemon = box.start()
    assert daemon.told("generation", "stopping") == "not ready in 2 s (opening the device)"
    ended = time.monotonic() - box.vllm.events("spawned", engine="generation")[0].at
    figure(12, "ended after, of 2 s", ended, "s")
    box.vllm.set_faults("generation")
    daemon.told("generation", "ready")
    daemon.until_ready()


def test_a_process_that_left_its_group_dies_with_its_engine(box: Box, figure: Figure) -> None:
    box.configure()
    box.vllm.set_faults("embedding", grandchild=True)
    daemon = box.start()
    daemon.until_ready()
    (grandchild,) = box.vllm.events("grandchild")
    began = time.monotonic()
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "backoff")
    assert not alive(grandchild.pid)
    figure(10, "killed leader to no grandchild left", time.monotonic() - began, "s")
    until(lambda: daemon.engine("embedding").restarts == 1)


def test_a_failing_engine_shows_its_log_and_what_to_do_on_the_plain_screen(box: Box) -> None:
    box.configure()
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"
    box.vllm.set_faults("generation", fail_at="loading", log=(error,))
    daemon = box.start(LOG_FORMAT="text")
    daemon.out.wait(lambda line: line.startswith("generation  failed"))
    daemon.out.wait(lambda line: error in line)
    assert daemon.stop() == 0
    assert daemon.out.lines[0] == f"memoria     proxy on http://127.0.0.1:{box.ports.main}"
    assert any(line.startswith("generation  backoff   CUDA out of memory") for line in daemon.out.lines)
    assert any(line.startswith("hint: ") for line in daemon.out.lines)
    assert any(line.startswith("embedding   ready") for line in daemon.out.lines)
