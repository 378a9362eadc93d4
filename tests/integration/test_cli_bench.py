"""`memoria bench` against a daemon with stub engines."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

from tests.integration.daemon import Box, RunningDaemon

SHORT = ("--seconds", "1", "--streams", "4", "--tokens", "8", "--clients", "2", "--texts", "3")
SECOND = """\
  second:
    model: ./models/second
    gpu_memory_utilization: 0.05
"""


def test_each_engine_is_loaded_alone_then_all_together(box: Box) -> None:
    box.vllm.set_faults(token_seconds=0.01)
    _ready(box, more_engines=SECOND)
    done = box.call("bench", *SHORT, "--json", "--plot", "bench.svg")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"] == ["NVIDIA Stub"]
    assert report["load"]["streams"] == 4
    assert report["ready_after"] > 0
    assert {span["part"] for span in report["starts"]["generation"]} >= {"import", "gate"}
    phases = report["phases"]
    assert [phase["name"] for phase in phases] == [
        "embedding alone",
        "generation alone",
        "second alone",
        "together",
    ]
    assert phases[0]["generation"] == []
    for engine in (one for phase in phases for one in phase["embedding"] + phase["generation"]):
        assert engine["rate"] > 0
        assert engine["failures"] == {"count": 0, "first": None}
    assert [engine["engine"] for engine in phases[-1]["generation"]] == ["generation", "second"]
    # the stub makes a token every 10 ms
    assert phases[1]["generation"][0]["between_tokens"]["p50"] > 0.005
    assert (box.folder / "bench.svg").read_text().startswith("<svg")


def test_tokens_are_counted_not_the_events_they_come_in(box: Box) -> None:
    box.vllm.set_faults(token_seconds=0.01, event_tokens=4)
    _ready(box)
    done = box.call("bench", "generation", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    (phase,) = json.loads(done.stdout)["phases"]
    (engine,) = phase["generation"]
    assert engine["counted"]
    # 4 streams of 8 tokens in two events, 40 ms apart; as events they would be 100 a second at the most
    assert engine["rate"] > 130
    assert engine["between_tokens"]["p50"] < 0.03


def test_engines_can_be_named_and_one_that_is_not_ready_is_refused(box: Box) -> None:
    _ready(box)
    done = box.call("bench", "embedding", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "embedding  alone" in done.stdout
    assert "generation" not in done.stdout
    unknown = box.call("bench", "embeding")
    assert unknown.returncode == 2
    assert unknown.stderr.endswith("did you mean `embedding`?\n")
    assert box.call("stop", "generation", "--now").returncode == 0
    refused = box.call("bench", "generation", *SHORT)
    assert refused.returncode == 69
    assert "generation is not ready: stopped" in refused.stderr
    rest = box.call("bench", *SHORT)
    assert rest.returncode == 0
    assert rest.stderr == "skipping generation: it is stopped\nembedding alone ...\n"


def test_requests_that_fail_are_told_and_counted(box: Box) -> None:
    (box.folder / "keys").write_text("bench: 0123456789abcdef0123\n")
    (box.folder / "keys").chmod(0o600)
    _ready(box, top="keys: keys")
    refused = box.call("bench", *SHORT)
    assert refused.returncode == 1
    assert "requests failed, the first: 401" in refused.stdout
    allowed = box.call("bench", *SHORT, MEMORIA_KEY="0123456789abcdef0123")
    assert allowed.returncode == 0, allowed.stdout


def test_a_picture_is_refused_before_anything_is_measured_if_it_could_not_be_written(box: Box) -> None:
    png = box.call("bench", "--plot", "bench.png")
    assert png.returncode == 2
    assert "the chart is an SVG: bench.png must end in .svg" in png.stderr
    nowhere = box.call("bench", "--plot", "nowhere/bench.svg")
    assert nowhere.returncode == 2
    assert "there is no directory nowhere" in nowhere.stderr


def test_ctrl_c_ends_it_with_what_was_measured_and_a_terminal_sees_a_bar(box: Box) -> None:
    _ready(box)
    terminal, theirs = pty.openpty()
    bench = subprocess.Popen(
        [sys.executable, "-m", "memoria", "bench", "--seconds", "2"],
        cwd=box.folder,
        env=box.env({"TERM": "xterm", "COLUMNS": "80"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen, deadline = "", time.monotonic() + 30
    while "generation alone" not in seen and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode()
    bench.send_signal(signal.SIGINT)
    out, _ = bench.communicate(timeout=20)
    seen += os.read(terminal, 65536).decode()
    os.close(terminal)
    assert bench.returncode == 130
    assert "embedding  alone" in out
    assert "generation  alone" not in out
    assert "━" in seen
    assert "interrupted: the unfinished phase does not count" in seen
    assert "Traceback" not in seen


def test_without_a_daemon_it_says_so(box: Box) -> None:
    box.configure()
    done = box.call("bench")
    assert done.returncode == 3
    assert "memoria is not running with this configuration" in done.stderr


def _ready(box: Box, *, top: str = "", more_engines: str = "") -> RunningDaemon:
    box.configure(top=top, more_engines=more_engines)
    daemon = box.start()
    daemon.until_ready()
    return daemon
