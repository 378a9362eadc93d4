"""An engine whose core stands still while `/health` says 200: found, killed, started again."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.faults.report import Figure
from tests.integration.daemon import Box, RunningDaemon

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


def test_a_slow_answer_that_makes_tokens_is_no_hang(box: Box) -> None:
    """Longer than the patience by far."""
    hangs_after(box, 1)
    box.vllm.set_faults("generation", token_seconds=0.3)
    daemon = box.start()
    daemon.until_ready()
    answer = daemon.ask("POST", "/v1/completions", {**PROMPT, "max_tokens": 12})
    assert answer.status == 200
    assert daemon.story("suspect") == []
