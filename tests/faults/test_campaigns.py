"""The same death again and again, under load: what is rare in one try shows in a hundred."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.faults.report import Figure
from tests.faults.traffic import Traffic, percentile
from tests.faults.verdict import FAILED, Verdict
from tests.integration.daemon import Box, RunningDaemon, until
from tests.integration.http_client import Streaming
from tests.stub_engine.process import alive

pytestmark = pytest.mark.faults

KILLS = 100
DAEMONS = 50
RESTARTS = 20
LONGEST_BACKOFF = 0.2 * 1.2  # of the box's configuration, with its jitter


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    """All ready; a stream of ten tokens takes 0.1 s."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.01)
    daemon = box.start()
    daemon.until_ready()
    return daemon


def test_a_hundred_killed_processes_cost_the_neighbour_nothing(
    daemon: RunningDaemon, box: Box, figure: Figure
) -> None:
    """A random process of the generation engine's tree each time; the embedding engine is the neighbour."""
    neighbour, waits, survivors = daemon.leader("embedding"), [], 0
    own_start = daemon.engine("generation").start_seconds
    assert own_start is not None
    with Traffic(box.ports.main, embeddings=2, streams=4) as traffic:
        for _ in range(KILLS):
            before = daemon.engine("generation")
            tree = [event.pid for event in box.vllm.events(engine="generation") if alive(event.pid)]
            began = time.monotonic()
            os.kill(random.choice(sorted(set(tree))), signal.SIGKILL)
            until(lambda before=before: _ready_again(daemon, before.restarts))  # type: ignore[misc]
            waits.append(time.monotonic() - began)
            survivors += sum(alive(pid) for pid in tree)
    assert daemon.leader("embedding") == neighbour
    assert traffic.failures("embeddings") == {}
    # memoria ends what a dead leader leaves; a dead core's leader lives on for a moment and ends it itself
    assert traffic.causes(Verdict.CUT, Verdict.WRONG) == {}
    assert survivors == 0
    assert max(waits) <= own_start + 3 + LONGEST_BACKOFF
    figure(1, "neighbour's requests", traffic.count(Verdict.WHOLE, kind="embeddings"))
    figure(1, "explicit failures", traffic.count(*FAILED, kind="streams"))
    figure(1, "whole streams", traffic.count(Verdict.WHOLE, kind="streams"))
    figure(1, "death to ready, median", percentile(sorted(waits), 0.5), "s")
    figure(1, "death to ready, longest", max(waits), "s")
    figure(1, "its own start", own_start, "s")
    figure(26, "streams under fire", traffic.count(*Verdict, kind="streams"))
    for verdict in (Verdict.ERROR, Verdict.ENDED, Verdict.CUT, Verdict.REFUSED):
        figure(26, verdict, traffic.count(verdict, kind="streams"))
    figure(26, "truncated in silence", traffic.count(Verdict.WRONG, kind="streams"))


def _ready_again(daemon: RunningDaemon, restarts: int) -> bool:
    engine = daemon.engine("generation")
    return engine.restarts > restarts and engine.state == "ready"


def test_fifty_killed_daemons_leave_nothing(box: Box, figure: Figure) -> None:
    box.configure()
    seconds = []
    for _ in range(DAEMONS):
        daemon = box.start()
        daemon.until_ready()
        assert daemon.story("killed a leftover") == []
        daemon.signal(signal.SIGKILL)
        began = time.monotonic()
        until(lambda: box.survivors() == [])
        seconds.append(time.monotonic() - began)
        daemon.exit_code()
    assert max(seconds) <= 2
    figure(2, "killed to nothing left, median", percentile(sorted(seconds), 0.5), "s")
    figure(2, "killed to nothing left, longest", max(seconds), "s")


def test_embeddings_outlast_twenty_planned_restarts(daemon: RunningDaemon, box: Box, figure: Figure) -> None:
    with Traffic(box.ports.main, embeddings=4) as traffic:
        for _ in range(RESTARTS):
            before = daemon.leader("embedding")
            assert box.call("restart", "embedding").returncode == 0
            assert daemon.leader("embedding") != before
    assert traffic.failures() == {}
    figure(28, "whole embeddings", traffic.count(Verdict.WHOLE))
    figure(28, "longest held", max(traffic.seconds("embeddings")), "s")


def test_a_stop_under_load_lets_everything_finish(daemon: RunningDaemon, box: Box, figure: Figure) -> None:
    with Traffic(box.ports.main, embeddings=4, streams=8) as traffic:
        until(lambda: traffic.count(Verdict.WHOLE, kind="streams") > 50)
        with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 100}) as long:
            long.event()
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            assert daemon.exit_code() == 0
            seconds = time.monotonic() - began
            assert len(long.rest()) == 100
    assert box.survivors() == []
    in_flight = [r for r in traffic.results if r.at < began < r.at + r.seconds]
    assert [r for r in in_flight if r.verdict is not Verdict.WHOLE] == []
    assert traffic.causes(Verdict.WRONG) == {}
    figure(13, "SIGTERM under load: in flight, all finished", len(in_flight))
    figure(13, "SIGTERM under load to exit 0", seconds, "s")
