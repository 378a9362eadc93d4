"""`memoria bench` against a daemon with stub engines."""

from __future__ import annotations

import json

from tests.integration.daemon import Box

SHORT = ("--seconds", "1", "--streams", "4", "--tokens", "8", "--clients", "2", "--texts", "3")


def test_a_running_daemon_is_loaded_alone_and_together(box: Box) -> None:
    box.configure()
    box.vllm.set_faults(token_seconds=0.01)
    daemon = box.start()
    daemon.until_ready()
    done = box.call("bench", *SHORT, "--json", "--plot", "bench.svg")
    assert done.returncode == 0, done.stderr
    alone, streams, together = json.loads(done.stdout)
    assert [phase["name"] for phase in (alone, streams, together)] == [
        "embedding alone",
        "generation alone",
        "together",
    ]
    assert alone["generation"] is None
    assert streams["embedding"] is None
    for phase in (alone, streams, together):
        assert phase["failures"] == 0, phase["failure"]
    assert together["embedding"]["rate"] > 0
    assert together["generation"]["rate"] > 0
    # the stub makes a token every 10 ms
    assert streams["generation"]["between_tokens"]["p50"] > 0.005
    assert (box.folder / "bench.svg").read_text().startswith("<svg")


def test_requests_that_fail_are_told_and_counted(box: Box) -> None:
    box.configure(top="keys: keys")
    (box.folder / "keys").write_text("bench: 0123456789abcdef0123\n")
    (box.folder / "keys").chmod(0o600)
    daemon = box.start()
    daemon.until_ready()
    refused = box.call("bench", *SHORT)
    assert refused.returncode == 1
    assert "requests failed, the first: 401" in refused.stdout
    allowed = box.call("bench", *SHORT, MEMORIA_KEY="0123456789abcdef0123")
    assert allowed.returncode == 0, allowed.stdout


def test_without_a_daemon_it_says_so(box: Box) -> None:
    box.configure()
    done = box.call("bench")
    assert done.returncode == 3
    assert "memoria is not running with this configuration" in done.stderr
