"""Campaigns as tests: a hundred killed processes, fifty killed daemons, twenty restarts. Longer, or with real
engines: `python -m tests.faults.campaign`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.campaign import STUB_FAULTS, Kills, kill_daemons, kill_processes
from tests.faults.report import Figure
from tests.faults.target import of_stub, of_vllm
from tests.faults.traffic import Traffic, percentile
from tests.faults.verdict import FAILED, Verdict
from tests.integration.daemon import Box, RunningDaemon, until
from tests.integration.http_client import Streaming

pytestmark = pytest.mark.faults

KILLS, VLLM_KILLS = 100, 10
DAEMONS = 50
RESTARTS = 20


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    """All ready; a stream of ten tokens takes 0.1 s."""
    box.configure()
    box.vllm.set_faults("generation", token_seconds=0.01)
    daemon = box.start()
    daemon.until_ready()
    return daemon


def test_a_hundred_killed_processes_cost_the_neighbour_nothing(box: Box, figure: Figure) -> None:
    report = kill_processes(of_stub(box, STUB_FAULTS), KILLS)
    _tell(report, figure, "stub")
    assert report.wrong() == []


def test_ten_killed_processes_of_a_real_engine_cost_the_neighbour_nothing(
    tmp_path: Path, figure: Figure
) -> None:
    daemon = of_vllm(tmp_path)
    try:
        report = kill_processes(daemon, VLLM_KILLS)
    finally:
        daemon.stop()
    _tell(report, figure, "vLLM")
    assert report.wrong() == []


def _tell(report: Kills, figure: Figure, engines: str) -> None:
    print("\n".join(report.lines()))
    streams = [result.verdict for result in report.results if result.kind == "streams"]
    embeddings = [result.verdict for result in report.results if result.kind == "embeddings"]
    figure(1, f"{engines}: kills", len(report.waits))
    figure(1, f"{engines}: neighbour's requests", len(embeddings))
    figure(1, f"{engines}: neighbour's failures", sum(verdict is not Verdict.WHOLE for verdict in embeddings))
    figure(1, f"{engines}: explicit failures", sum(verdict in FAILED for verdict in streams))
    figure(1, f"{engines}: survivors", report.survivors)
    figure(1, f"{engines}: death to ready, median", percentile(list(report.waits), 0.5), "s")
    figure(1, f"{engines}: death to ready, longest", report.waits[-1], "s")
    figure(1, f"{engines}: own start + 3 s + backoff", report.allowed, "s")
    figure(1, f"{engines}: death to ready besides the start itself, longest", report.besides[-1], "s")
    figure(26, f"{engines}: streams under fire", len(streams))
    for verdict in (Verdict.ERROR, Verdict.ENDED, Verdict.CUT, Verdict.REFUSED):
        figure(26, f"{engines}: {verdict}", streams.count(verdict))
    figure(26, f"{engines}: truncated in silence", streams.count(Verdict.WRONG))


def test_fifty_killed_daemons_leave_nothing(box: Box, figure: Figure) -> None:
    report = kill_daemons(lambda: of_stub(box, STUB_FAULTS), DAEMONS)
    print("\n".join(report.lines()))
    figure(2, "daemons killed", len(report.seconds))
    figure(2, "requests in flight then", report.in_flight)
    figure(2, "starts that found something left", report.leftovers)
    figure(2, "killed to nothing left, median", percentile(list(report.seconds), 0.5), "s")
    figure(2, "killed to nothing left, longest", report.seconds[-1], "s")
    assert report.wrong() == []


def test_embeddings_outlast_twenty_planned_restarts(daemon: RunningDaemon, box: Box, figure: Figure) -> None:
    with Traffic(box.ports.main, embeddings=4) as traffic:
        for _ in range(RESTARTS):
            before = daemon.leader("embedding")
            assert box.call("restart", "embedding").returncode == 0
            assert daemon.leader("embedding") != before
    assert traffic.failures() == {}
    figure(28, "planned restarts", RESTARTS)
    figure(28, "whole embeddings", traffic.count(Verdict.WHOLE))
    figure(28, "failed", sum(traffic.failures().values()))
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
