"""Engines that sleep (vLLM's sleep mode, levels 1 and 2), and every way in which that fails."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from memoria.errors import ExitCode
from memoria.text import GIB
from tests.integration.daemon import Box, RunningDaemon, until
from tests.stub_engine.device import held
from tests.stub_engine.sleep_mode import ROUTES

SWAP = "swap: {turn: 1, patience: 20, min_awake: 0.2}"
BYTES = {"embedding": 29 * GIB, "generation": 58 * GIB, "second": 57 * GIB}


def started(
    box: Box, *, level: int = 1, top: str = SWAP, more: str = "", release: int = 20, **faults: Any
) -> RunningDaemon:
    second = f"""\
  second:
    model: ./models/second
    gpu_memory_utilization: 0.60
    on_demand: true
    sleep_level: {level}
"""
    for engine, size in BYTES.items():
        box.vllm.set_faults(engine, gpu_bytes=size, **(faults if engine == "generation" else {}))
    box.configure(top=top, more_engines=f"    on_demand: true\n    sleep_level: {level}\n{more}{second}")
    box.file.write_text(box.file.read_text().replace("release: 20", f"release: {release}"))
    running = box.start()
    running.until_ready()
    return running


def complete(daemon: RunningDaemon, model: str) -> str:
    answer = daemon.ask("POST", "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2})
    assert answer.status == 200, answer.text
    return str(answer.json["choices"][0]["text"])


def starts(daemon: RunningDaemon, engine: str = "generation") -> int:
    return len(daemon.box.vllm.events("through the gate", engine=engine))


def used(box: Box) -> int:
    """Of the GPU, in GiB."""
    return held(box.nvml.file) // GIB


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_and_wakes_without_a_start(box: Box, level: int) -> None:
    daemon = started(box, level=level)
    said = complete(daemon, "writer")
    assert complete(daemon, "second")
    daemon.told("generation", "asleep")
    assert used(box) == 29 + 57 + 1
    health = daemon.ask("GET", "/health")
    assert (health.status, health.json["services"]["generation"]) == (200, "asleep")
    assert "generation: wakes when a request comes" in box.call("status").stdout
    assert complete(daemon, "writer") == said
    assert (starts(daemon), starts(daemon, "second")) == (1, 1)
    assert [event.detail for event in box.vllm.events("sleep", engine="generation")] == [str(level)]
    assert daemon.story("killed", "backoff", "sleep_failed", "wake_failed", "wrong_after_wake") == []


def test_nobody_reaches_the_development_routes(box: Box) -> None:
    daemon = started(box)
    complete(daemon, "writer")
    for path, method in ROUTES.items():
        for port in (box.ports.main, box.ports.generation):
            for query in ("", "?level=1&model=writer"):
                assert daemon.ask(method, path + query, {"model": "writer"}, port=port).status == 404, path
                assert daemon.ask(method, f"/generation{path}", {"model": "writer"}, port=port).status == 404
    assert box.vllm.events("sleep") == box.vllm.events("rpc") == []
    assert "VLLM_SERVER_DEV_MODE" not in Path(f"/proc/{daemon.leader('embedding')}/environ").read_text()
    assert complete(daemon, "writer")


@pytest.mark.parametrize(
    "fault",
    [{"sleep_fails": True}, {"sleep_hangs": True}, {"asleep_bytes": 30 * GIB}],
    ids=["after its memory is gone", "hangs", "frees half"],
)
def test_a_failed_sleep_is_an_end_and_no_wake(box: Box, fault: dict[str, Any]) -> None:
    daemon = started(box, release=1 if "sleep_hangs" in fault else 20, **fault)
    said = complete(daemon, "writer")
    assert complete(daemon, "second")
    assert daemon.told("generation", "sleep_failed")
    daemon.told("generation", "dormant", times=2)
    assert box.vllm.events("wake", engine="generation") == []
    assert used(box) == 29 + 57
    assert daemon.ask("GET", "/health").status == 200
    assert complete(daemon, "writer") == said
    assert starts(daemon) == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"wake_takes_only": 30 * GIB}, "wake_failed"),
        ({"wrong_after_wake": True}, "wrong_after_wake"),
    ],
    ids=["half", "wrong"],
)
def test_a_failed_wake_is_healed_by_a_cold_start(box: Box, fault: dict[str, Any], told: str) -> None:
    daemon = started(box, **fault)
    said = complete(daemon, "writer")
    assert complete(daemon, "second")
    daemon.told("generation", "asleep")
    assert complete(daemon, "writer") == said
    daemon.told("generation", told)
    assert starts(daemon) == 2
    assert daemon.ask("GET", "/health").status == 200


def test_level_2_reads_its_weights_again_or_starts_anew(box: Box) -> None:
    daemon = started(box, level=2, reload_fails=True)
    said = complete(daemon, "writer")
    assert complete(daemon, "second")
    assert complete(daemon, "writer") == said
    assert "reload_weights" in daemon.told("generation", "wake_failed")
    assert starts(daemon) == 2


def test_a_wake_waits_for_memory_that_another_program_holds(box: Box) -> None:
    daemon = started(box)
    complete(daemon, "writer")
    complete(daemon, "second")
    box.call("sleep", "second")
    rows = box.nvml.file.read_text()
    assert "\t0\t0\n" in rows
    box.nvml.file.write_text(rows.replace("\t0\t0\n", f"\t{40 * GIB}\t0\n", 1))  # used by no engine
    taken = threading.Thread(target=complete, args=(daemon, "writer"))
    taken.start()
    daemon.told("generation", "waits_for_memory")
    assert box.vllm.events("wake", engine="generation") == []
    box.nvml.file.write_text(rows)
    taken.join()
    assert starts(daemon) == 1


def test_a_crash_while_asleep_is_a_cold_start_when_it_is_needed(box: Box) -> None:
    daemon = started(box)
    said = complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    os.kill(daemon.core("generation"), signal.SIGKILL)
    daemon.told("generation", "dormant", times=2)
    assert daemon.ask("GET", "/health").status == 503
    assert complete(daemon, "writer") == said
    assert starts(daemon) == 2
    assert daemon.ask("GET", "/health").status == 200


def test_a_core_that_is_lost_while_asleep_ends_its_leader_too(box: Box) -> None:
    daemon = started(box, leader_stays=600)
    complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    os.kill(daemon.core("generation"), signal.SIGKILL)
    daemon.told("generation", "dormant", times=2)


def test_a_killed_daemon_leaves_no_sleeper(box: Box) -> None:
    daemon = started(box)
    complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    daemon.kill()
    until(lambda: box.survivors() == [])


def test_the_end_of_the_daemon_ends_a_sleeper(box: Box) -> None:
    daemon = started(box)
    complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_a_reload_while_a_model_wakes(box: Box) -> None:
    """Its settings are new: it ends, and the request is answered by a start that has them."""
    daemon = started(box, wake_hangs=True)
    complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    waiting = threading.Thread(target=complete, args=(daemon, "writer"))
    waiting.start()
    daemon.told("generation", "waking")
    box.file.write_text(box.file.read_text().replace("    port:", "    max_num_seqs: 7\n    port:"))
    box.vllm.set_faults("generation", gpu_bytes=BYTES["generation"])
    assert box.call("reload").returncode == ExitCode.OK
    waiting.join()
    assert starts(daemon) == 2
    assert "--max-num-seqs\x007" in Path(f"/proc/{daemon.leader('generation')}/cmdline").read_text()


def test_without_host_memory_it_ends_instead(box: Box) -> None:
    daemon = started(box, top="swap: {turn: 1, patience: 20, min_awake: 0.2, host_memory: 1GiB}")
    complete(daemon, "writer")  # its log says 1.19 GiB of weights
    complete(daemon, "second")
    assert "host memory" in daemon.told("generation", "ends_instead")
    daemon.told("generation", "dormant", times=2)
    assert box.vllm.events("sleep") == []


def test_what_it_keeps_asleep_is_in_the_next_plan(box: Box) -> None:
    def planned() -> list[dict[str, Any]]:
        return list(json.loads(box.call("check", "--json").stdout)["devices"][0]["engines"])

    daemon = started(box)
    assert {engine["name"]: engine["asleep_bytes"] for engine in planned()}["generation"] == 3 * GIB // 2
    complete(daemon, "writer")
    complete(daemon, "second")
    daemon.told("generation", "asleep")
    assert daemon.stop() == 0
    assert {engine["name"]: engine["asleep_bytes"] for engine in planned()}["generation"] == GIB


def test_swaps_lose_no_request_and_no_memory(box: Box) -> None:
    daemon = started(box)
    said = {model: complete(daemon, model) for model in ("writer", "second")}
    wrong: list[str] = []

    def load(model: str) -> None:
        while len(box.vllm.events("wake")) < 8:
            if complete(daemon, model) != said[model]:
                wrong.append(model)

    clients = [threading.Thread(target=load, args=(model,)) for model in said for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert wrong == []
    assert (starts(daemon), starts(daemon, "second")) == (1, 1)
    assert daemon.story("killed", "sleep_failed", "wake_failed", "drain_timed_out") == []


def test_a_person_puts_it_to_sleep_wakes_it_and_restarts_it(box: Box) -> None:
    daemon = started(box)
    assert box.call("wake", "generation").stdout.splitlines()[-1] == "generation  ready"
    assert box.call("sleep", "generation").stdout.splitlines()[-1] == "generation  asleep"
    assert box.call("sleep", "generation").stdout == "generation  is asleep already\n"
    assert box.call("wake", "generation").stdout.splitlines()[-2:] == [
        "generation  waking",
        "generation  ready",
    ]
    assert box.call("sleep", "generation").returncode == ExitCode.OK
    assert box.call("restart", "generation").stdout.splitlines()[-1] == "generation  ready"
    assert starts(daemon) == 2
    assert box.call("sleep", "generation").returncode == ExitCode.OK
    assert box.call("stop", "generation").stdout.splitlines()[-1] == "generation  stopped"


def test_metrics_of_sleep(box: Box) -> None:
    daemon = started(box)
    complete(daemon, "writer")
    complete(daemon, "second")
    complete(daemon, "writer")
    text = daemon.ask("GET", "/metrics").text
    for series in (
        'memoria_engine_wakes_total{engine="generation",from="dormant",cause="request"} 1',
        'memoria_engine_wakes_total{engine="generation",from="asleep",cause="request"} 1',
        'memoria_engine_sleeps_total{engine="generation"} 1',
        'memoria_engine_sleep_seconds_count{engine="generation"} 1',
        f'memoria_engine_asleep_memory_bytes{{engine="generation"}} {GIB}',
        'memoria_engine_wrong_after_wake_total{engine="generation"} 0',
    ):
        assert series in text
    assert 'memoria_engine_host_memory_bytes{engine="generation"} 1277' in text
