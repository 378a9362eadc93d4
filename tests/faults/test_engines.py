"""Engines that crash, vanish, cut their answers or flood their logs, under a daemon."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise

import pytest

from tests.faults.inside import change_stub
from tests.faults.report import Figure
from tests.faults.traffic import Connection, OfStub, embed
from tests.faults.verdict import Verdict
from tests.integration.daemon import Box
from tests.integration.http_client import Streaming
from tests.stub_engine.process import alive

MIB = 1 << 20


def test_a_crash_loop_backs_off_and_ends_with_its_reason(box: Box, figure: Figure) -> None:
    box.configure()
    box.file.write_text(
        box.file.read_text().replace("{initial: 0.1, cap: 0.2, attempts: 2}", "{initial: 0.2, attempts: 4}")
    )
    box.vllm.set_faults("generation", fail_at="importing")
    daemon = box.start()
    assert "never ready in 4 starts" in daemon.told("generation", "failed")
    starts = [event.at for event in box.vllm.events("spawned", engine="generation")]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert len(gaps) == 3
    for number, gap in enumerate(gaps):
        assert gap >= 0.8 * 0.2 * 2**number
        figure(7, f"start {number + 2} after", gap, "s")


def test_a_leader_that_ends_by_itself_leaves_no_child(box: Box) -> None:
    """Without the passenger, which would end the core first: the supervisor alone must do."""
    box.configure()
    box.vllm.set_faults("generation", without_plugins=True, vanish_after_tokens=1)
    daemon = box.start()
    daemon.until_ready()
    core = daemon.core("generation")
    daemon.forget()
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 5}) as stream:
        assert "[DONE]" not in stream.rest()
    assert daemon.told("generation", "releasing") == "exited 1"
    daemon.told("generation", "backoff")
    assert not alive(core)


@pytest.mark.faults
def test_an_engine_that_floods_its_log_neither_stalls_nor_fills_the_disk(box: Box, figure: Figure) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("log: {", "log: {max_mb: 1, keep: 2, "))
    daemon = box.start()
    daemon.until_ready()
    change_stub(daemon, "generation", token_seconds=0.02)
    quiet, _ = _longest_gap(box, tokens=200)
    change_stub(daemon, "generation", stderr_bytes_per_second=10_000_000)
    flooded, most = _longest_gap(box, tokens=500)
    figure(23, "longest token gap, quiet log", quiet, "ms")
    figure(23, "longest token gap, 10 MB/s", flooded, "ms")
    figure(23, "most on disk, of 3 files of 1 MiB", most / MIB, "MiB")
    assert len(list((box.folder / "logs").glob("generation.log*"))) == 3
    assert flooded < quiet + 1000
    # a log is looked at every second: that second's 10 MB more in each, and as much again on a busy machine
    assert most < 3 * (1 + 2 * 10) * MIB


def _longest_gap(box: Box, tokens: int) -> tuple[float, int]:
    """Between two tokens, in milliseconds, and the most bytes that the log's files had meanwhile."""
    gap, most = 0.0, 0
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": tokens}) as stream:
        for _ in range(tokens):
            before = time.monotonic()
            stream.event()
            gap = max(gap, time.monotonic() - before)
            files = (box.folder / "logs").glob("generation.log*")
            most = max(most, sum(file.stat().st_size for file in files))
        assert stream.rest() == ["[DONE]"]
    return gap * 1000, most


def test_a_stream_of_an_engine_that_vanishes_ends_with_an_error(box: Box) -> None:
    box.configure()
    box.vllm.set_faults("generation", vanish_after_tokens=3)
    daemon = box.start()
    daemon.until_ready()
    with Streaming(box.ports.main, {"prompt": "a", "max_tokens": 10}) as stream:
        *tokens, last = stream.rest()
    assert len(tokens) == 3
    assert json.loads(last)["error"]["code"] == "engine_lost"


def test_half_a_json_body_is_no_answer(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    change_stub(daemon, "embedding", cut_body=True)

    async def ask() -> tuple[Verdict, str]:
        connection = Connection(box.ports.main)
        judged = await embed(connection, OfStub())
        connection.drop()
        return judged

    assert asyncio.run(ask()) == (Verdict.CUT, "half a 200")
