"""Another configuration for a running daemon: what changes at once, who restarts, what changes nothing."""

from __future__ import annotations

import http.client
import json
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from memoria.errors import ExitCode
from memoria.text import GIB
from tests.integration.daemon import PATIENCE, Box, RunningDaemon, until
from tests.integration.http_client import Streaming
from tests.ports import free_ports
from tests.stub_nvml import StubProcess

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 2}
MORE_SEQUENCES = "    model: ./models/writer\n    max_num_seqs: 7\n"


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    box.configure()
    running = box.start()
    running.until_ready()
    running.forget()
    return running


def change(box: Box, old: str, new: str) -> None:
    text = box.file.read_text()
    assert old in text
    box.file.write_text(text.replace(old, new, 1))


def more_sequences(box: Box) -> None:
    change(box, "    model: ./models/writer\n", MORE_SEQUENCES)


def leaders(daemon: RunningDaemon) -> dict[str, int | None]:
    return {engine.name: engine.pid for engine in daemon.status().engines}


def connection(box: Box) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", box.ports.main, timeout=PATIENCE)


def reload(box: Box, *flags: str, code: int = 0) -> str:
    done = box.call("reload", *flags)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_only_the_changed_engine_restarts(box: Box, daemon: RunningDaemon) -> None:
    before = leaders(daemon)
    more_sequences(box)
    daemon.signal(signal.SIGHUP)
    assert daemon.told("memoria", "reloaded") == "generation restarts (max_num_seqs)"
    daemon.told("generation", "ready")
    after = leaders(daemon)
    assert after["embedding"] == before["embedding"]
    assert after["generation"] != before["generation"]
    command = Path(f"/proc/{after['generation']}/cmdline").read_text()
    assert "--max-num-seqs\x007" in command


def test_a_dry_run_says_it_and_does_nothing(box: Box, daemon: RunningDaemon) -> None:
    before = leaders(daemon)
    more_sequences(box)
    change(box, "timeouts: {", "timeouts: {idle: 7, ")
    assert reload(box, "--dry-run").splitlines() == [
        "would be changed: timeouts.idle",
        "would be restarted: generation (max_num_seqs)",
    ]
    assert leaders(daemon) == before
    answer = json.loads(reload(box, "--json"))
    assert answer["applied"]
    assert answer["restarts"] == [{"engine": "generation", "keys": ["max_num_seqs"]}]
    daemon.told("generation", "ready")
    assert reload(box) == "nothing has changed\n"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("gpu_memory_utilization: 0.60", "gpu_memory_utilization: 0.80", "fractions add up to 1.10"),
        ("engines:", "enginess:", "unknown key `enginess`"),
        ("./models/writer", "./models/nobody", "no model at"),
        ("log: {dir: logs,", "log: {dir: other,", "`log.dir` cannot be reloaded"),
        ("log: {dir: logs,", "keys: ./none\nlog: {dir: logs,", "cannot read the API key file"),
    ],
)
def test_what_is_wrong_changes_nothing_and_is_told(
    box: Box, daemon: RunningDaemon, old: str, new: str, told: str
) -> None:
    before = leaders(daemon)
    change(box, "timeouts: {", "timeouts: {idle: 7, ")
    change(box, old, new)
    daemon.signal(signal.SIGHUP)
    assert told in daemon.told("memoria", "reload_refused")
    assert told in reload(box, code=ExitCode.CONFIG)
    assert leaders(daemon) == before
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200
    assert daemon.story("stopping", "draining") == []


def test_a_taken_port_changes_nothing(box: Box, daemon: RunningDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        change(box, f"listen: 127.0.0.1:{box.ports.main}", f"listen: 127.0.0.1:{holder.getsockname()[1]}")
        assert "is in use" in reload(box, code=ExitCode.UNAVAILABLE)
    daemon.until_ready()


def test_the_address_changes_without_dropping_a_connection(box: Box, daemon: RunningDaemon) -> None:
    """A stream that is under way ends whole; a kept connection is answered; new ones go to the new port."""
    (port,) = free_ports(1)
    box.vllm.set_faults("generation", token_seconds=0.2)
    kept, stream = connection(box), connection(box)
    kept.request("GET", "/livez")
    kept.getresponse().read()
    daemon.ask("POST", "/v1/completions", PROMPT)
    body = json.dumps({**PROMPT, "max_tokens": 400, "stream": True})
    stream.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = stream.getresponse()
    change(box, f"listen: 127.0.0.1:{box.ports.main}", f"listen: 127.0.0.1:{port}")
    assert reload(box) == "changed: listen\n"
    assert daemon.ask("GET", "/livez", port=port).status == 200
    with pytest.raises(ConnectionRefusedError):
        daemon.ask("GET", "/livez")
    kept.request("GET", "/livez")
    assert kept.getresponse().status == 200
    assert answer.read().endswith(b"data: [DONE]\n\n")
    kept.close()
    stream.close()


def test_keys_and_limits_count_from_the_next_request_on(box: Box, daemon: RunningDaemon) -> None:
    kept = connection(box)

    def ask(**headers: str) -> int:
        given = {"content-type": "application/json", **headers}
        kept.request("POST", "/v1/completions", json.dumps(PROMPT), given)
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert ask() == 200
    keys = box.folder / "keys"
    keys.write_text("chat: " + "k" * 40 + "\n")
    keys.chmod(0o600)
    change(box, "engines:", "keys: ./keys\nengines:")
    assert reload(box) == "changed: keys\n"
    assert ask() == 401
    assert ask(authorization="Bearer " + "k" * 40) == 200
    kept.close()


def test_engines_come_and_go(box: Box, daemon: RunningDaemon) -> None:
    text = box.file.read_text()
    start = text.index("  generation:")
    box.file.write_text(
        text[:start] + "  second:\n    model: ./models/second\n    gpu_memory_utilization: 0.5\n"
    )
    before = leaders(daemon)
    assert reload(box).splitlines() == ["started: second", "stopped: generation"]
    daemon.told("generation", "stopped")
    daemon.told("second", "ready")
    assert set(leaders(daemon)) == {"embedding", "second"}
    assert leaders(daemon)["embedding"] == before["embedding"]
    assert daemon.ask("POST", "/v1/completions", {**PROMPT, "model": "second"}).status == 200
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_an_engine_that_comes_back_while_it_still_drains_starts_when_it_has_ended(box: Box) -> None:
    """As with a restart: its stream ends whole, what is asked meanwhile is held, and no new stream is cut."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.02)
    daemon = box.start()
    daemon.until_ready()
    with_both, long = box.file.read_text(), {**PROMPT, "max_tokens": 150}
    with Streaming(box.ports.main, long) as before:
        before.event()
        box.file.write_text(with_both[: with_both.index("  generation:")])
        assert reload(box) == "stopped: generation\n"
        daemon.told("generation", "draining")
        box.file.write_text(with_both)
        assert reload(box) == "started: generation\n"
        with Streaming(box.ports.main, long) as held:
            assert held.status == 200
            assert held.rest()[-1] == "[DONE]"
        assert before.rest()[-1] == "[DONE]"
    story = daemon.story("draining", "stopping", "queued", "ready")
    assert [what for name, what in story if name == "generation"] == [
        *("queued", "ready"),
        *("draining", "stopping", "queued", "ready"),
    ]
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_two_that_change_restart_one_after_the_other_and_who_shrinks_goes_first(
    box: Box, daemon: RunningDaemon
) -> None:
    change(box, "gpu_memory_utilization: 0.30", "gpu_memory_utilization: 0.60")
    change(
        box,
        "gpu_memory_utilization: 0.60\n    port: " + str(box.ports.generation),
        "gpu_memory_utilization: 0.30\n    port: " + str(box.ports.generation),
    )
    reload(box)
    daemon.told("embedding", "ready")
    moments = daemon.story("draining", "ready")
    assert moments[-4:] == [
        ("generation", "draining"),
        ("generation", "ready"),
        ("embedding", "draining"),
        ("embedding", "ready"),
    ]


def test_a_failed_engine_gets_another_try(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("generation", fail_at="loading")
    daemon = box.start()
    daemon.told("generation", "failed")
    box.vllm.set_faults("generation")
    assert reload(box) == "tried again: generation\n"
    daemon.told("generation", "ready")


def test_a_removed_engine_whose_memory_is_held_blocks_its_device_no_longer_than_that(box: Box) -> None:
    box.configure()
    change(box, "release: 20", "release: 0.5")
    box.vllm.set_faults(gpu_bytes=28 * GIB, memory_stays=True)
    daemon = box.start()
    daemon.until_ready()
    neighbour = StubProcess(daemon.core("generation"), 28)
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "held")
    text = box.file.read_text()
    box.file.write_text(text[: text.index("  embedding:")] + text[text.index("  generation:") :])
    assert reload(box).splitlines()[0] == "stopped: embedding"
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    box.use_gpu(processes=[neighbour])  # the removed engine's is back
    daemon.told("embedding", "stopped")
    box.use_gpu()
    daemon.told("generation", "ready", times=2)


def test_a_failed_engine_that_is_removed_does_not_end_the_restarts(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("embedding", fail_at="loading")
    daemon = box.start()
    daemon.told("embedding", "failed")
    daemon.told("generation", "ready")
    text = box.file.read_text()
    box.file.write_text(text[: text.index("  embedding:")] + text[text.index("  generation:") :])
    more_sequences(box)
    assert "restarted: generation (max_num_seqs)" in reload(box)
    daemon.told("generation", "ready", times=2)


def test_a_reload_that_gets_no_descriptors_for_its_new_address_changes_nothing(
    box: Box, daemon: RunningDaemon
) -> None:
    before, (port,) = leaders(daemon), free_ports(1)
    change(box, f"listen: 127.0.0.1:{box.ports.main}", f"listen: 127.0.0.1:{port}")
    change(box, "timeouts: {", "timeouts: {idle: 7, ")
    limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir()}
    free = next(number for number in count() if number not in used)
    # one descriptor: for the file, and then for the new address, but not to accept there
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free + 1, limit[1]))
    daemon.signal(signal.SIGHUP)
    told = daemon.told("memoria", "reload_refused")
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
    assert told == "cannot listen on the new addresses: Too many open files"
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200
    with pytest.raises(ConnectionRefusedError):
        daemon.ask("GET", "/livez", port=port)
    assert "listen" in reload(box, "--dry-run")
    assert leaders(daemon) == before
    reload(box)
    assert daemon.ask("POST", "/v1/completions", PROMPT, port=port).status == 200


def test_a_reload_that_is_under_way_when_the_daemon_is_stopped_is_not_adopted(
    box: Box, daemon: RunningDaemon
) -> None:
    more_sequences(box)
    box.use_gpu(delay_ms=1500)
    daemon.signal(signal.SIGHUP)
    time.sleep(0.3)  # it is being checked
    assert daemon.stop() == 0
    assert daemon.story("reloaded", "reload_refused") == [("memoria", "reload_refused")]


def test_requests_across_a_reload_are_held(box: Box, daemon: RunningDaemon) -> None:
    more_sequences(box)
    reload(box)
    daemon.told("generation", "draining")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(daemon.ask, "POST", "/v1/completions", PROMPT) for _ in range(4)]
        assert [one.result().status for one in asked] == [200] * 4


# ------------------------------------------------------------------ the terminal


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def in_terminal(box: Box, *, shown: bool = False) -> tuple[subprocess.Popen[bytes], int]:
    """`memoria run` as the leader of a session on a terminal; also the terminal's other end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", TAKE_TERMINAL, sys.executable, "-m", "memoria", "run"],
        cwd=box.folder,
        env=box.env({}),
        stdin=slave,
        stdout=slave if shown else subprocess.DEVNULL,
        stderr=slave if shown else subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(slave)
    return process, master


def test_a_terminal_that_closes_ends_the_daemon_and_its_engines(box: Box) -> None:
    box.configure()
    process, terminal = in_terminal(box)
    until(lambda: box.call("status").returncode == 0)
    process.send_signal(signal.SIGHUP)  # the terminal is there: a reload
    more_sequences(box)
    process.send_signal(signal.SIGHUP)
    until(lambda: len(box.vllm.events("ready", engine="generation")) == 2)
    os.close(terminal)
    assert process.wait(PATIENCE) == 0
    assert box.survivors() == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_daemon_whose_screen_was_the_terminal_that_closed_has_ended_well(box: Box, form: str) -> None:
    """What it still had to show can be shown to nobody, and is no failure."""
    box.configure()
    change(box, "${LOG_FORMAT:-json}", form)
    process, terminal = in_terminal(box, shown=True)
    until(lambda: box.call("status").returncode == 0)
    os.close(terminal)
    assert process.wait(PATIENCE) == 0
    assert box.survivors() == []
