"""Reloads under load: clients notice neither a refused one nor one that restarts an engine."""

from __future__ import annotations

import signal

import pytest

from tests.faults.report import Figure
from tests.faults.traffic import Traffic
from tests.faults.verdict import Verdict
from tests.integration.daemon import Box, RunningDaemon, until

REFUSED = (
    ("engines:", "engines: ["),
    ("engines:", "enginess:"),
    ("gpu_memory_utilization: 0.60", "gpu_memory_utilization: 0.80"),
    ("./models/writer", "./models/nobody"),
    ("log: {dir: logs,", "log: {dir: other,"),
)
TIMES = 4  # each


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    """All ready; a stream takes 0.1 s."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.01)
    daemon = box.start()
    daemon.until_ready()
    daemon.forget()
    return daemon


def leaders(daemon: RunningDaemon) -> list[int]:
    return [daemon.leader(name) for name in ("embedding", "generation")]


def test_reloads_that_are_refused_drop_nothing(box: Box, daemon: RunningDaemon, figure: Figure) -> None:
    before, good = leaders(daemon), box.file.read_text()
    with Traffic(box.ports.main, embeddings=3, streams=3) as traffic:
        for number in range(TIMES * len(REFUSED)):
            old, new = REFUSED[number % len(REFUSED)]
            assert old in good
            box.file.write_text(good.replace(old, new, 1).replace("stop: 1", "stop: 7"))
            daemon.signal(signal.SIGHUP)
            daemon.told("memoria", "reload_refused", times=number + 1)
            answered = traffic.count(Verdict.WHOLE)
            until(lambda answered=answered: traffic.count(Verdict.WHOLE) > answered + 50)  # type: ignore[misc]
    assert traffic.failures() == {}
    assert leaders(daemon) == before
    assert daemon.story("draining", "stopping") == []
    figure(20, "refused reloads", TIMES * len(REFUSED))
    figure(20, "whole answers meanwhile", traffic.count(Verdict.WHOLE))
    figure(20, "failed", sum(traffic.failures().values()))
    figure(20, "longest answer", max(traffic.seconds("streams")) * 1000, "ms")


def test_reloads_that_restart_an_engine_fail_nothing(box: Box, daemon: RunningDaemon, figure: Figure) -> None:
    embedding, generation = leaders(daemon)
    good = box.file.read_text()
    with Traffic(box.ports.main, embeddings=3, streams=3) as traffic:
        for number in range(TIMES):
            sequences = f"    model: ./models/writer\n    max_num_seqs: {number + 7}\n"
            box.file.write_text(good.replace("    model: ./models/writer\n", sequences))
            assert box.call("reload").stdout == "restarted: generation (max_num_seqs)\n"
            daemon.told("generation", "ready", times=number + 1)
        after = traffic.count(Verdict.WHOLE, kind="streams")
        until(lambda: traffic.count(Verdict.WHOLE, kind="streams") > after + 20)
    assert traffic.failures() == {}
    assert daemon.leader("embedding") == embedding
    assert daemon.leader("generation") != generation
    figure(21, "reloads", TIMES)
    figure(21, "whole answers meanwhile", traffic.count(Verdict.WHOLE))
    figure(21, "failed", sum(traffic.failures().values()))
    figure(21, "longest held", max(traffic.seconds("streams")), "s")
