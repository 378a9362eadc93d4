"""start, stop, restart, watching: the commands against a running daemon, in a pipe and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
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
    assert (done.returncode, done.stdout) == (2, "")
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


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, machine: Box, *command: str, size: tuple[int, int]) -> None:
        self._main, terminal = pty.openpty()
        self.resize(*size)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "memoria", *command],
            cwd=machine.folder,
            env=machine.env({"TERM": "xterm"}),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.seen = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until_drawn(self, times: int) -> list[str]:
        """The lines of the latest picture that is complete, without colours."""

        def grown() -> bool:
            self.seen += os.read(self._main, 65536)
            return self.seen.count(b"\033[J") >= times

        until(grown)
        picture = self.seen.rpartition(b"\033[J")[0].rpartition(b"\033[H")[2].decode()
        return re.sub(r"\033\[[\d;]*[mK]", "", picture).replace("\r", "").rstrip("\n").split("\n")

    def end(self) -> bytes:
        """After Ctrl-C; what is left on the terminal."""
        self.process.send_signal(signal.SIGINT)
        try:
            while more := os.read(self._main, 65536):
                self.seen += more
        except OSError:  # the terminal's other end is gone
            pass
        assert self.process.wait(PATIENCE) == 0
        os.close(self._main)
        assert b"Traceback" not in self.seen
        return self.seen.rpartition(b"\033[?1049l")[2]


@pytest.mark.parametrize("command", [["top"], ["status", "--watch"]])
def test_on_a_terminal_the_picture_is_redrawn_in_place_and_left_behind(
    daemon: RunningDaemon, machine: Box, command: list[str]
) -> None:
    terminal = Terminal(machine, *command, size=(80, 24))
    first = terminal.until_drawn(2)
    assert terminal.seen.startswith(b"\033[?1049h")
    assert max(map(len, first)) <= 80
    after = terminal.end()
    assert first[0].split()[0].encode() in after


def test_the_picture_has_the_terminals_size_also_when_that_changes(
    daemon: RunningDaemon, machine: Box
) -> None:
    terminal = Terminal(machine, "top", size=(120, 40))
    wide = terminal.until_drawn(1)
    assert 80 < max(map(len, wide)) <= 120
    drawn = terminal.seen.count(b"\033[J")
    terminal.resize(60, 6)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    small = terminal.until_drawn(drawn + 1)
    assert max(map(len, small)) <= 60
    assert len(small) <= 5
    terminal.end()


def test_a_watched_status_for_programs_is_an_object_on_each_line(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    watching = subprocess.Popen(
        [sys.executable, "-m", "memoria", "status", "--watch", "--json"],
        cwd=box.folder,
        env=box.env({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    first = watching.stdout.readline()
    daemon.stop()
    rest, _ = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 3
    statuses = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert statuses[0]["status"] == "healthy"
    assert {engine["state"] for engine in statuses[-1]["engines"]} == {"stopped"}


def test_the_last_requests_are_shown_and_written_down(daemon: RunningDaemon, machine: Box) -> None:
    secret = "a confidential prompt"
    assert daemon.ask("POST", "/v1/embeddings?secret=query", {"input": secret}).status == 200
    assert daemon.ask("POST", "/v1/completions", {"model": "none", "prompt": secret}).status == 404
    done = machine.call("requests", "-n", "2")
    assert done.returncode == 0
    header, embedding, unknown = words(done.stdout)
    assert header == ["TIME", "CODE", "TOTAL", "FIRST", "TOKENS", "ENGINE", "ROUTE"]
    assert (embedding[1], embedding[-2:]) == ("200", ["embedding", "/v1/embeddings"])
    assert (unknown[1], unknown[-1]) == ("404", "/v1/completions")
    log = machine.folder / "logs/memoria.requests.log"
    until(lambda: len(log.read_text().splitlines()) >= 2)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["status"] for row in rows[-2:]] == [200, 404]
    assert (rows[-2]["prompt_tokens"], rows[-2]["method"], rows[-2]["client"]) == (3, "POST", "127.0.0.1")
    assert "secret" not in log.read_text() + done.stdout
    assert secret not in log.read_text() + done.stdout


def test_logs_since_a_while_ago(daemon: RunningDaemon, machine: Box) -> None:
    assert "non-default args" in machine.call("logs", "embedding", "--since", "1h").stdout
    assert "non-default args" in machine.call("logs", "embedding", "--since", "999999d").stdout
    to_come = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    assert machine.call("logs", "embedding", "--since", to_come).stdout == ""
    done = machine.call("logs", "embedding", "--since", "soon")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: `soon` is not a time\nhint: write ")


def test_the_flags_of_all_commands_are_those_of_every_command(box: Box) -> None:
    assert box.call("completion", "bash", "--no-color", "-c", "other.yaml").returncode == 0
    assert "No such option" not in box.call("service", "--json", "uninstall", "--no-color").stderr


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
