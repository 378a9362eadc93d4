"""Engines on demand, as clients and a person see them: dormant until needed, in turns, no answer lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from memoria.errors import ExitCode
from tests.integration.daemon import Box, RunningDaemon, until

SWAP = "swap: {turn: 1, patience: 20, min_awake: 0.2}"
SECOND = """\
  second:
    model: ./models/second
    gpu_memory_utilization: 0.60
    on_demand: true
"""


@pytest.fixture
def daemon(box: Box) -> RunningDaemon:
    return started(box)


def started(box: Box, *, more: str = "", second: str = SECOND, top: str = SWAP) -> RunningDaemon:
    box.configure(top=top, more_engines=f"    on_demand: true\n{more}{second}")
    running = box.start()
    running.until_ready()
    return running


def prompt(model: str, tokens: int = 2) -> dict[str, object]:
    return {"model": model, "prompt": "a", "max_tokens": tokens}


def complete(daemon: RunningDaemon, model: str) -> int:
    return daemon.ask("POST", "/v1/completions", prompt(model)).status


def starts(daemon: RunningDaemon, engine: str) -> int:
    return len(daemon.box.vllm.events("through the gate", engine=engine))


def test_one_that_nobody_needs_has_no_process_and_is_healthy(daemon: RunningDaemon) -> None:
    assert [daemon.engine(name).state for name in ("generation", "second")] == ["dormant", "dormant"]
    assert daemon.box.vllm.events("spawned", engine="generation") == []
    health = daemon.ask("GET", "/health")
    assert health.status == 200
    assert health.json["services"] == {
        "router": "healthy",
        "embedding": "healthy",
        "generation": "dormant",
        "second": "dormant",
    }
    shown = daemon.box.call("status")
    assert shown.returncode == ExitCode.OK
    assert "generation: starts when a request comes" in shown.stdout


def test_a_request_wakes_it_and_the_next_model_takes_its_place(daemon: RunningDaemon) -> None:
    assert complete(daemon, "writer") == 200
    assert complete(daemon, "second") == 200
    assert daemon.told("generation", "makes_room") == "for second: it is idle"
    assert daemon.engine("generation").state == "dormant"
    assert complete(daemon, "writer") == 200
    assert daemon.story("backoff", "failed", "killed") == []
    assert (starts(daemon, "generation"), starts(daemon, "second")) == (2, 1)
    assert starts(daemon, "embedding") == 1


def test_both_stay_awake_where_there_is_room(box: Box) -> None:
    daemon = started(box, second=SECOND.replace("0.60", "0.05"))
    assert {complete(daemon, "writer"), complete(daemon, "second")} == {200}
    assert {complete(daemon, "writer"), complete(daemon, "second")} == {200}
    assert daemon.story("makes_room") == []


def test_a_turn_ends_and_no_request_is_lost_or_cut(daemon: RunningDaemon) -> None:
    """Steady traffic to one model does not starve the other, and answers under way are finished."""
    statuses: list[int] = []
    over = threading.Event()

    def steady() -> None:
        while not over.is_set():
            answer = daemon.ask("POST", "/v1/completions", prompt("writer", 20))
            statuses.append(answer.status)
            assert len(answer.json["choices"]) == 1

    clients = [threading.Thread(target=steady) for _ in range(4)]
    for client in clients:
        client.start()
    daemon.told("generation", "ready")
    assert complete(daemon, "second") == 200
    over.set()
    for client in clients:
        client.join()
    assert set(statuses) == {200}
    assert daemon.story("drain_timed_out", "killed", "backoff") == []


def test_an_idle_one_ends_after_its_ttl(box: Box) -> None:
    daemon = started(box, more="    ttl: 0.3\n")
    assert complete(daemon, "writer") == 200
    assert daemon.told("generation", "makes_room") == "it was idle for its `ttl`"
    daemon.told("generation", "dormant", times=2)
    assert daemon.ask("GET", "/readyz").status == 200


def test_one_that_is_preloaded_is_started_with_memoria(box: Box) -> None:
    daemon = started(box, more="    preload: true\n")
    assert daemon.told("generation", "wakes") == "once with memoria (`preload`)"
    daemon.told("generation", "ready")


def test_with_a_standby_a_swap_waits_at_the_gate(box: Box) -> None:
    daemon = started(box, more="    standby: true\n")
    assert complete(daemon, "writer") == 200
    daemon.told("generation", "standby_waiting")
    assert complete(daemon, "second") == 200
    daemon.forget()
    assert complete(daemon, "writer") == 200
    daemon.told("generation", "standby_took_over")


def test_beyond_hold_a_client_is_told_when_to_come_back(box: Box) -> None:
    daemon = started(box, top=f"{SWAP}\nhold: {{seconds: 0}}")
    answer = daemon.ask("POST", "/v1/completions", prompt("writer"))
    assert answer.status == 503
    assert answer.json["error"]["code"] == "engine_not_ready"
    assert int(answer.headers["retry-after"]) >= 1
    daemon.told("generation", "ready")  # it is woken all the same
    assert complete(daemon, "writer") == 200


def test_a_crash_while_awake_is_followed_by_a_start_when_it_is_needed(daemon: RunningDaemon) -> None:
    assert complete(daemon, "writer") == 200
    os.kill(daemon.leader("generation"), signal.SIGKILL)
    daemon.told("generation", "dormant", times=2)
    assert "SIGKILL" in daemon.engine("generation").detail
    assert daemon.story("backoff") == []
    assert daemon.ask("GET", "/health").status == 503
    assert complete(daemon, "writer") == 200
    assert daemon.ask("GET", "/health").status == 200


def test_one_that_never_starts_is_given_up_and_the_others_are_served(daemon: RunningDaemon) -> None:
    daemon.box.vllm.set_faults("generation", fail_at="loading")
    assert complete(daemon, "writer") == 503
    daemon.told("generation", "failed")
    assert complete(daemon, "second") == 200
    daemon.box.vllm.set_faults("generation")
    assert daemon.box.call("start", "generation").returncode == ExitCode.OK
    assert complete(daemon, "writer") == 200


def test_a_person_stops_and_starts_it(daemon: RunningDaemon) -> None:
    assert daemon.box.call("start", "generation").returncode == ExitCode.OK
    assert daemon.engine("generation").state == "ready"
    assert daemon.box.call("restart", "generation").returncode == ExitCode.OK
    assert daemon.box.call("stop", "generation").returncode == ExitCode.OK
    assert complete(daemon, "writer") == 503
    assert daemon.engine("generation").state == "stopped"
    assert daemon.box.call("restart", "generation").returncode == ExitCode.OK
    assert complete(daemon, "writer") == 200


@pytest.mark.parametrize(
    ("before", "after"), [("generation", "second"), ("second", "generation")], ids=["first", "second"]
)
def test_a_reload_gives_a_dormant_engine_its_settings_at_its_next_start(
    daemon: RunningDaemon, before: str, after: str
) -> None:
    names = {"generation": "writer", "second": "second"}
    assert complete(daemon, names[before]) == 200
    file = daemon.box.file
    file.write_text(file.read_text().replace("on_demand: true\n", "on_demand: true\n    max_num_seqs: 7\n"))
    assert daemon.box.call("reload").returncode == ExitCode.OK
    assert complete(daemon, names[after]) == 200
    command = Path(f"/proc/{daemon.leader(after)}/cmdline").read_text()
    assert "--max-num-seqs\x007" in command


def test_a_reload_makes_it_resident(daemon: RunningDaemon) -> None:
    file = daemon.box.file
    text = file.read_text().replace(SECOND, "").replace("    on_demand: true\n", "")
    file.write_text(text)
    assert daemon.box.call("reload").returncode == ExitCode.OK
    daemon.told("generation", "ready")


def test_the_end_of_the_daemon_leaves_nothing(box: Box) -> None:
    daemon = started(box, more="    standby: true\n")
    assert complete(daemon, "writer") == 200
    daemon.told("generation", "standby_waiting")
    assert complete(daemon, "second") == 200
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_a_killed_daemon_leaves_nothing_either(box: Box) -> None:
    daemon = started(box, more="    standby: true\n")
    assert complete(daemon, "writer") == 200
    daemon.told("generation", "standby_waiting")
    assert complete(daemon, "second") == 200
    daemon.kill()
    until(lambda: box.survivors() == [])


def test_swaps_under_load_lose_no_request(daemon: RunningDaemon) -> None:
    """Requests of two models that do not fit beside each other: all are answered, in turns."""
    failed: list[int] = []

    def load(model: str) -> Callable[[], None]:
        def work() -> None:
            while starts(daemon, "generation") + starts(daemon, "second") < 8:
                if (status := complete(daemon, model)) != 200:
                    failed.append(status)

        return work

    clients = [threading.Thread(target=load(model)) for model in ("writer", "second") for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert failed == []
    swaps = [engine for engine, _ in daemon.story("wakes")]
    assert all(first != then for first, then in pairwise(swaps))


def test_a_person_wakes_it_and_lets_it_sleep(daemon: RunningDaemon) -> None:
    woken = daemon.box.call("wake", "generation")
    assert woken.returncode == ExitCode.OK
    assert woken.stdout.splitlines()[-1] == "generation  ready"
    slept = daemon.box.call("sleep", "generation")
    assert slept.returncode == ExitCode.OK
    assert slept.stdout.splitlines()[-1] == "generation  dormant"
    refused = daemon.box.call("sleep", "embedding")
    assert refused.returncode != ExitCode.OK
    assert "engine `embedding` is resident" in refused.stderr
    assert daemon.box.call("sleep", "generation").stdout == "generation  is dormant already\n"


def test_it_is_kept_from_its_ttl_for_as_long_as_a_client_says(box: Box) -> None:
    daemon = started(box, more="    ttl: 0.3\n")
    assert box.call("wake", "generation", "--for", "600").returncode == ExitCode.OK
    assert complete(daemon, "writer") == 200
    assert complete(daemon, "second") == 200
    assert daemon.told("generation", "makes_room") == "for second: it is idle"  # not its ttl


def test_models_are_listed_with_their_state(daemon: RunningDaemon) -> None:
    def states() -> dict[str, str | None]:
        cards = daemon.ask("GET", "/v1/models").json["data"]
        return {card["id"]: card.get("status", {}).get("value") for card in cards}

    assert states() == {"embedder": None, "writer": "unloaded", "second": "unloaded"}
    assert complete(daemon, "writer") == 200
    assert states() == {"embedder": None, "writer": "loaded", "second": "unloaded"}
    assert daemon.ask("GET", "/v1/models/second").json["id"] == "second"
    assert daemon.box.call("stop", "second").returncode == ExitCode.OK
    assert "second" not in states()


def test_metrics_count_wakes_and_ends(daemon: RunningDaemon) -> None:
    assert {complete(daemon, "writer"), complete(daemon, "second")} == {200}
    text = daemon.ask("GET", "/metrics").text
    for series in (
        'memoria_engine_awake{engine="generation"} 0',
        'memoria_engine_awake{engine="second"} 1',
        'memoria_engine_wakes_total{engine="generation",from="dormant",cause="request"} 1',
        'memoria_engine_yields_total{engine="generation",cause="idle"} 1',
        'memoria_engine_wake_seconds_count{engine="second"} 1',
        'memoria_engine_restarts_total{engine="generation",cause="asked"} 0',
    ):
        assert series in text
