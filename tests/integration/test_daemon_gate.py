"""The GPU gate: one engine at a time between the gate and ready, in the file's order, only where it fits."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from memoria.text import GIB
from tests.faults.report import Figure
from tests.integration.daemon import Box, RunningDaemon, times_behind_gate, until
from tests.stub_nvml import StubProcess

IN_THE_FILES_ORDER = [
    ("embedding", "gate_passed"),
    ("embedding", "gate_left"),
    ("generation", "gate_passed"),
    ("generation", "gate_left"),
]


def gate_of(daemon: RunningDaemon) -> list[tuple[str, str]]:
    return daemon.story("gate_passed", "gate_left")


def overlaps(box: Box) -> bool:
    """By the stubs' own clocks: did two of them load at the same time?"""
    moments = times_behind_gate(box.vllm)
    return any(earlier.end > later.begin for earlier, later in pairwise(moments))


def test_engines_are_spawned_together_and_load_one_by_one_in_the_files_order(box: Box) -> None:
    box.configure()
    go = box.folder / "go"
    box.vllm.set_faults("embedding", import_until=str(go), load_seconds=0.2)
    box.vllm.set_faults("generation", load_seconds=0.2)
    daemon = box.start()
    daemon.until_listening()
    until(lambda: daemon.engine("generation").phase == "at the GPU gate")
    assert len(box.vllm.events("spawned")) == 2
    assert box.vllm.events("through the gate") == []
    go.touch()
    daemon.until_ready()
    assert gate_of(daemon) == IN_THE_FILES_ORDER
    assert not overlaps(box)


def test_engines_that_do_not_load_the_passenger_are_started_one_by_one(box: Box) -> None:
    box.configure()
    box.vllm.set_faults(without_plugins=True, load_seconds=0.2)
    daemon = box.start()
    daemon.told("embedding", "no_passenger")
    daemon.told("generation", "no_passenger")
    daemon.until_ready()
    assert gate_of(daemon)[-4:] in (IN_THE_FILES_ORDER, IN_THE_FILES_ORDER[2:] + IN_THE_FILES_ORDER[:2])
    assert {engine.restarts for engine in daemon.status().engines} == {1}
    assert len(box.vllm.events("ready")) == 2
    assert box.vllm.events("ready")[0].at < box.vllm.events("spawned")[-1].at
    assert daemon.stop() == 0
    assert box.survivors() == []


def test_an_engine_that_does_not_fit_waits_at_the_gate_and_says_why(box: Box) -> None:
    box.configure(top="hold: {seconds: 0.1}")
    go = box.folder / "go"
    box.vllm.set_faults("embedding", import_until=str(go))
    daemon = box.start()
    until(lambda: len(box.vllm.events("spawned")) == 2)
    box.use_gpu(processes=[StubProcess(os.getpid(), 75)])  # after the preflight
    go.touch()
    detail = daemon.told("embedding", "waits_for_memory")
    assert detail.startswith("embedding needs 30.8 GiB, GPU 0 has 25.0 GiB free; ")
    assert f"pid {os.getpid()} " in detail
    daemon.told("generation", "waits_for_memory")
    engine = daemon.engine("embedding")
    assert (engine.state, engine.phase) == ("starting", "at the GPU gate")
    assert engine.detail == "embedding needs 30.8 GiB, GPU 0 has 25.0 GiB free"
    shown = box.call("status")
    assert shown.returncode == 1
    assert f"GPU 0 has 25.0 GiB free; pid {os.getpid()}  " in shown.stdout
    assert f"stop pid {os.getpid()}, or lower embedding to 0.24" in shown.stdout
    answer = daemon.ask("POST", "/v1/embeddings", {"input": "a"})
    assert answer.status == 503
    assert "embedding needs 30.8 GiB" in answer.error["message"]
    assert "pid" not in answer.error["message"]  # strangers' processes are not the clients' business
    assert box.vllm.events("through the gate") == []

    box.use_gpu()
    daemon.until_ready()
    assert daemon.engine("embedding").detail == ""
    assert not overlaps(box)


def test_nothing_starts_while_a_dead_engines_memory_lingers(box: Box, figure: Figure) -> None:
    box.configure()
    box.vllm.set_faults(gpu_bytes=28 * GIB)
    daemon = box.start()
    daemon.until_ready()
    core = daemon.core("embedding")
    lingering = [StubProcess(core, 28), StubProcess(daemon.core("generation"), 28)]

    os.kill(daemon.leader("embedding"), signal.SIGKILL)  # it gives nothing back
    daemon.told("embedding", "releasing")
    until(lambda: core not in box.survivors())
    box.use_gpu(processes=lingering)
    for used in (20, 10):
        box.use_gpu(used=used, processes=lingering[1:])
        assert daemon.engine("embedding").state == "releasing"
    back = time.monotonic()
    box.use_gpu(processes=lingering[1:])
    daemon.told("embedding", "backoff")
    daemon.told("embedding", "ready", times=2)
    passed = box.vllm.events("through the gate", engine="embedding")[-1].at
    figure(5, "memory back to next start at the device", passed - back, "s")
    assert passed > back
    assert daemon.engine("generation").restarts == 0


def test_memory_that_never_comes_back_holds_the_device_until_it_does(box: Box) -> None:
    box.configure()
    box.file.write_text(box.file.read_text().replace("release: 20", "release: 0.5"))
    box.vllm.set_faults(gpu_bytes=28 * GIB, memory_stays=True)
    daemon = box.start()
    daemon.until_ready()
    neighbour = StubProcess(daemon.core("generation"), 28)
    os.kill(daemon.leader("embedding"), signal.SIGKILL)
    daemon.told("embedding", "held")
    shown = box.call("status")
    assert shown.returncode == 1
    assert "nothing starts on this device until it does" in shown.stdout
    assert daemon.ask("POST", "/v1/completions", {"prompt": "a"}).status == 200
    box.use_gpu(processes=[neighbour])
    daemon.told("embedding", "ready", times=2)


def test_two_engines_that_die_together_start_one_after_the_other(box: Box, figure: Figure) -> None:
    box.configure()
    box.vllm.set_faults(load_seconds=0.2)
    daemon = box.start()
    daemon.until_ready()
    leaders = [daemon.leader(name) for name in ("embedding", "generation")]
    for leader in leaders:
        os.kill(leader, signal.SIGKILL)
    daemon.told("embedding", "ready", times=2)
    daemon.told("generation", "ready", times=2)
    moments = times_behind_gate(box.vllm)
    assert len(moments) == 4
    assert not overlaps(box)
    figure(6, "one ready to the other at the device", (moments[3].begin - moments[2].end) * 1000, "ms")


def test_a_start_that_took_what_a_neighbour_gave_back_starts_again(box: Box) -> None:
    box.configure()
    go = box.folder / "go"
    box.vllm.set_faults("embedding", gpu_bytes=28 * GIB)
    box.vllm.set_faults("generation", gpu_bytes=70 * GIB, load_until=str(go))  # of 60
    daemon = box.start()
    daemon.told("embedding", "ready")
    daemon.told("generation", "gate_passed")
    until(lambda: bool(box.vllm.events("through the gate", engine="generation")))
    box.vllm.set_faults("embedding", import_until=str(box.folder / "never"))
    os.kill(daemon.core("embedding"), signal.SIGKILL)
    daemon.told("embedding", "releasing")
    box.vllm.set_faults("generation")
    go.touch()
    detail = daemon.told("generation", "starts_again")
    assert detail.startswith("generation uses 70.0 GiB, its fraction is 60.0 GiB")
    box.use_gpu()  # a killed stub gives nothing back
    daemon.told("generation", "ready")
    assert daemon.story("backoff") == [("embedding", "backoff")]


def test_a_restart_waits_for_a_neighbour_behind_the_gate(box: Box) -> None:
    box.configure()
    go = box.folder / "go"
    box.vllm.set_faults("generation", load_until=str(go))
    daemon = box.start()
    daemon.told("embedding", "ready")
    daemon.told("generation", "gate_passed")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(box.call, "restart", "embedding")
        assert daemon.told("embedding", "waits_for_neighbour") == "generation is behind the gate"
        answer = daemon.ask("POST", "/v1/embeddings", {"model": "embedder", "input": "it serves on"})
        assert answer.status == 200
        assert daemon.story("draining") == []
        go.touch()
        assert asked.result().returncode == 0
    assert asked.result().stdout.splitlines()[0] == (
        "embedding  waits for its turn: generation is behind the gate"
    )
    assert daemon.story("ready", "stopping") == [
        ("embedding", "ready"),
        ("generation", "ready"),
        ("embedding", "stopping"),
        ("embedding", "ready"),
    ]
