"""An engine whose core stands still while `/health` says 200: found, killed, started again."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.faults.inside import change_stub
from tests.faults.report import Figure
from tests.integration.daemon import Box, RunningDaemon
from tests.integration.http_client import Streaming

PROMPT = {"model": "writer", "prompt": "a", "max_tokens": 4}


def hangs_after(box: Box, seconds: float) -> None:
    box.configure()
    text = box.file.read_text()
    box.file.write_text(text.replace("timeouts: {start: 20,", f"timeouts: {{start: 20, hang: {seconds},"))


def signal_core(daemon: RunningDaemon, number: signal.Signals) -> None:
    os.kill(daemon.core("generation"), number)


def test_a_frozen_core_is_found_and_its_neighbour_is_left_alone(box: Box, figure: Figure) -> None:
    hangs_after(box, 1)
    daemon = box.start()
    daemon.until_ready()
    before, neighbour = daemon.leader("generation"), daemon.leader("embedding")
    daemon.forget()
    signal_core(daemon, signal.SIGSTOP)
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(daemon.ask, "POST", "/v1/completions", PROMPT)
        assert daemon.told("generation", "suspect").startswith("no progress for ")
        assert daemon.told("generation", "stopping").startswith("hung: no progress")
        figure(3, "frozen to found, patience 1 s", time.monotonic() - began, "s")
        daemon.told("generation", "ready")
        assert asked.result().status >= 500
    assert daemon.ask("POST", "/v1/completions", PROMPT).status == 200
    assert daemon.leader("generation") != before
    assert daemon.leader("embedding") == neighbour
    assert daemon.engine("generation").restarts == 1


def test_a_core_that_goes_on_in_time_is_not_restarted(box: Box) -> None:
    """What was frozen for a while answers memoria's own request, and everybody else's, from where it was."""
    hangs_after(box, 1)
    daemon = box.start()
    daemon.until_ready()
    before = daemon.leader("generation")
    daemon.forget()
    signal_core(daemon, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(daemon.ask, "POST", "/v1/completions", PROMPT)
        daemon.told("generation", "suspect")
        signal_core(daemon, signal.SIGCONT)
        daemon.told("generation", "ready")
        assert asked.result().status == 200
    assert daemon.leader("generation") == before


def test_an_answer_may_take_long_while_the_core_works(box: Box, figure: Figure) -> None:
    """No stream: all of it comes at the end, after three times `timeouts.idle`."""
    hangs_after(box, 6)
    box.file.write_text(box.file.read_text().replace("timeouts: {", "timeouts: {idle: 1.2, "))
    box.vllm.set_faults("generation", token_seconds=0.3)
    daemon = box.start()
    daemon.until_ready()
    began = time.monotonic()
    answer = daemon.ask("POST", "/v1/completions", {**PROMPT, "max_tokens": 12})
    figure(4, "whole answer at an idle limit of 1.2 s after", time.monotonic() - began, "s")
    assert (answer.status, time.monotonic() - began > 3.6) == (200, True)

    signal_core(daemon, signal.SIGSTOP)
    began = time.monotonic()
    answer = daemon.ask("POST", "/v1/completions", PROMPT)
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    assert time.monotonic() - began < 6
    assert daemon.story("suspect") == []
    signal_core(daemon, signal.SIGCONT)


def test_a_slow_answer_that_makes_tokens_is_no_hang(box: Box, figure: Figure) -> None:
    """Longer than the patience by far."""
    answered_unsuspected(box, figure, {"token_seconds": 0.3}, tokens=12)


def test_a_long_prefill_that_fills_the_cache_is_no_hang(box: Box, figure: Figure) -> None:
    """No token and no byte for longer than the patience by far, and then both."""
    answered_unsuspected(box, figure, {"token_seconds": 0.3, "prefill_chunks": 11}, tokens=1)


def test_a_prefill_that_fills_nothing_is_suspected(box: Box) -> None:
    """What the tests around this one inject is enough to be found, were it not for what the core tells."""
    hangs_after(box, 1)
    box.vllm.set_faults("generation", token_seconds=3.6)
    daemon = box.start()
    daemon.until_ready()
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(daemon.ask, "POST", "/v1/completions", {**PROMPT, "max_tokens": 1})
        assert daemon.told("generation", "suspect").startswith("no progress for 1 s")
        assert asked.result().status >= 500


def test_figures_that_come_late_are_no_hang(box: Box, figure: Figure) -> None:
    """A busy API server: each answer of `/metrics` takes as long as the patience lasts."""
    faults = {"token_seconds": 0.3, "prefill_chunks": 11, "metrics_seconds": 0.8}
    answered_unsuspected(box, figure, faults, tokens=1)


def test_figures_that_never_come_are_no_hang_while_tokens_do(box: Box, figure: Figure) -> None:
    """`/metrics` misses its timeout each time, and memoria's own request would take longer than the second
    look does; but a client is getting its answer."""
    faults = {"token_seconds": 0.7, "metrics_seconds": 20}
    answered_unsuspected(box, figure, faults, tokens=6, asking=0.2)


def test_health_that_never_comes_is_no_hang(box: Box, figure: Figure) -> None:
    """`/health` is what tells that an engine has started, and nothing later."""
    answered_unsuspected(box, figure, {"token_seconds": 0.3, "health_seconds": 20}, tokens=12)


def answered_unsuspected(
    box: Box, figure: Figure, faults: dict[str, float], *, tokens: int, asking: float = 5
) -> None:
    """A stream is whole although the ready engine has these faults, by a patience of 1 s. `asking`: seconds
    that memoria gives to an answer of `/metrics`."""
    hangs_after(box, 1)
    box.file.write_text(box.file.read_text().replace("timeouts: {", f"timeouts: {{health: {asking}, "))
    daemon = box.start()
    daemon.until_ready()
    change_stub(daemon, "generation", **faults)
    leader = daemon.leader("generation")
    began = time.monotonic()
    with Streaming(box.ports.main, {**PROMPT, "max_tokens": tokens}) as stream:
        answer = stream.rest()
    figure(4, "busy at a patience of 1 s for", time.monotonic() - began, "s")
    assert (len(answer), answer[-1]) == (tokens + 1, "[DONE]")
    assert daemon.story("suspect") == []
    assert daemon.leader("generation") == leader
