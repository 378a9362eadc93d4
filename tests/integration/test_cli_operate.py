"""start, stop, restart, watching: the commands against a running daemon, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import PATIENCE, Box, RunningDaemon, until


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    box.configure()
    box.file.write_text(box.file.read_text().replace("dir: logs,", "dir: logs, requests: json,"))
    yield box
    box.close()


@pytest.fixture(scope="module")
def daemon(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    assert daemon.stop() == 0


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_an_engine_is_stopped_started_and_restarted_and_each_step_is_told(
    daemon: RunningDaemon, machine: Box
) -> None:
    done = machine.call("stop", "embedding")
    assert (done.returncode, done.stderr) == (0, "")
    assert words(done.stdout)[-1] == ["embedding", "stopped"]
    assert daemon.engine("embedding").state == "stopped"
    done = machine.call("stop", "embedding")
    assert (done.returncode, done.stdout) == (0, "embedding  is stopped already\n")
    done = machine.call("start", "embedding")
    assert (done.returncode, words(done.stdout)) == (0, [["embedding", "starting"], ["embedding", "ready"]])
    assert machine.call("start", "embedding").stdout == "embedding  is ready already\n"
    before = daemon.leader("embedding")
    done = machine.call("restart", "embedding", "--now")
    assert done.returncode == 0
    assert [what for _, what, *_ in words(done.stdout)] == ["stopping", "starting", "ready"]
    assert daemon.leader("embedding") != before


def test_the_steps_are_objects_for_programs(daemon: RunningDaemon, machine: Box) -> None:
    done = machine.call("restart", "embedding", "--json")
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["what"] for step in steps] == ["draining", "stopping", "starting", "ready"]
    assert {step["engine"] for step in steps} == {"embedding"}


@pytest.mark.parametrize("command", ["start", "stop", "restart", "logs"])
def test_an_engine_that_is_not_there(daemon: RunningDaemon, machine: Box, command: str) -> None:
    done = machine.call(command, "generatio")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "error: there is no engine `generatio`\nhint: did you mean `generation`?\n"


@pytest.mark.parametrize(
    "command", [["start", "embedding"], ["stop", "embedding"], ["top"], ["status", "--watch"]]
)
def test_without_a_daemon(box: Box, command: list[str]) -> None:
    box.configure()
    done = box.call(*command)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: memoria is not running with this configuration\nhint: ")


def test_a_restart_that_fails_is_a_failure(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("embedding", fail_at="importing")
    daemon = box.start()
    daemon.told("embedding", "failed")
    done = box.call("restart", "embedding")
    assert done.returncode == 1
    assert words(done.stdout)[-1][:2] == ["embedding", "failed"]


def test_top_in_a_pipe_is_one_picture_without_colour(daemon: RunningDaemon, machine: Box) -> None:
    done = machine.call("top")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\033" not in done.stdout
    assert done.stdout.startswith("memoria ")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_watched_status_ends_with_ctrl_c_and_with_the_daemon(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    watching = [
        subprocess.Popen(
            [sys.executable, "-m", "memoria", "status", "--watch"],
            cwd=box.folder,
            env=box.env({"PYTHONUNBUFFERED": "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in watching:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ENGINE")
    watching[0].send_signal(signal.SIGINT)
    assert watching[0].communicate(timeout=PATIENCE)[1] == ""
    assert watching[0].returncode == 0
    daemon.stop()
    out, error = watching[1].communicate(timeout=PATIENCE)
    assert "stopped" in out
    assert error.startswith("error: memoria has ended")
    assert watching[1].returncode == 3


def test_on_a_terminal_the_picture_is_redrawn_in_place_and_left_behind(
    daemon: RunningDaemon, machine: Box
) -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "memoria", "top"],
        cwd=machine.folder,
        env=machine.env({"COLUMNS": "80", "TERM": "xterm"}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""

    def grown() -> bool:
        nonlocal seen
        seen += os.read(main, 65536)
        return seen.count(b"\033[H") >= 2

    until(grown)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    try:
        while more := os.read(main, 65536):
            seen += more
    except OSError:  # the terminal's other end is gone
        pass
    os.close(main)
    assert seen.startswith(b"\033[?1049h")
    after = seen.rpartition(b"\033[?1049l")[2]
    assert after.startswith(b"\033[1mmemoria ")
    assert b"Traceback" not in seen


def test_the_last_requests_are_shown_and_written_down(daemon: RunningDaemon, machine: Box) -> None:
    secret = "a prompt that nobody else may read"
    assert daemon.ask("POST", "/v1/embeddings?secret=query", {"input": secret}).status == 200
    assert daemon.ask("POST", "/v1/completions", {"model": "none", "prompt": secret}).status == 404
    done = machine.call("requests", "-n", "2")
    assert done.returncode == 0
    header, embedding, unknown = words(done.stdout)
    assert header == ["TIME", "STATUS", "TOTAL", "TTFT", "TOKENS", "ENGINE", "ROUTE"]
    assert (embedding[1], embedding[-2:]) == ("200", ["embedding", "/v1/embeddings"])
    assert (unknown[1], unknown[-1]) == ("404", "/v1/completions")
    log = machine.folder / "logs/memoria.requests.log"
    until(lambda: len(log.read_text().splitlines()) >= 2)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["status"] for row in rows[-2:]] == [200, 404]
    assert (rows[-2]["prompt_tokens"], rows[-2]["method"], rows[-2]["client"]) == (7, "POST", "127.0.0.1")
    assert "secret" not in log.read_text() + done.stdout
    assert secret not in log.read_text() + done.stdout


def test_logs_since_a_while_ago(daemon: RunningDaemon, machine: Box) -> None:
    assert "non-default args" in machine.call("logs", "embedding", "--since", "1h").stdout
    done = machine.call("logs", "embedding", "--since", "soon")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: `soon` is no time\nhint: write ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_engines(box: Box, shell: str) -> None:
    box.configure()
    done = box.call("completion", shell)
    assert done.returncode == 0
    assert "_MEMORIA_COMPLETE" in done.stdout
    words = {"COMP_WORDS": "memoria restart gen", "COMP_CWORD": "2"}
    if shell == "fish":
        words["COMP_CWORD"] = "gen"
    completed = box.call(_MEMORIA_COMPLETE=f"{shell}_complete", **words)
    assert "generation" in completed.stdout
    assert "embedding" not in completed.stdout
