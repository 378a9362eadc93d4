"""Real engines that die: who is restarted, who is left alone, what stays behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import openai
import psutil
import pytest

from memoria.engine.marker import marked
from tests.faults.report import Figure
from tests.vllm.daemon import RealDaemon


def core_of(leader: int) -> psutil.Process:
    return next(
        child for child in psutil.Process(leader).children(recursive=True) if "EngineCore" in _title(child)
    )


def _title(process: psutil.Process) -> str:
    return process.name() + " ".join(process.cmdline())


def start_of(pid: int) -> str:
    return str(psutil.Process(pid).environ()["MEMORIA_START"])


@pytest.mark.parametrize("name", ["embedding", "generation"])
@pytest.mark.parametrize("victim", ["leader", "core"])
def test_a_killed_process_brings_its_engine_back_and_leaves_the_neighbour_alone(
    daemon: RealDaemon, client: openai.OpenAI, figure: Figure, name: str, victim: str
) -> None:
    before = daemon.status()
    leader = before[name]["pid"]
    other = "generation" if name == "embedding" else "embedding"
    start = start_of(leader)

    began = time.monotonic()
    os.kill(leader if victim == "leader" else core_of(leader).pid, signal.SIGKILL)
    daemon.wait(lambda: daemon.health()["status"] == "degraded", f"{name} seen dead")
    answers_anyway(client, other)
    daemon.wait_ready()
    figure(1, "killed to ready, vLLM", time.monotonic() - began, "s")

    after = daemon.status()
    assert after[name]["pid"] != leader
    assert after[name]["restarts"] == before[name]["restarts"] + 1
    assert after[other]["pid"] == before[other]["pid"]
    assert marked("MEMORIA_START", start) == []
    answers_anyway(client, name)


def answers_anyway(client: openai.OpenAI, name: str) -> None:
    if name == "embedding":
        assert client.embeddings.create(model="tiny-embedding", input="x").data
    else:
        assert client.completions.create(model="tiny-generation", prompt="x", max_tokens=2).choices


def test_no_two_engines_were_ever_between_gate_and_ready(daemon: RealDaemon) -> None:
    """Read from the journal, after all starts and restarts of this session."""
    inside: set[str] = set()
    passages = 0
    for record in daemon.journal():
        _, what = record["message"].split(": ")[:2]
        if what == "passed the gate":
            inside.add(record["engine"])
            passages += 1
        elif what == "left the gate":
            inside.discard(record["engine"])
        assert len(inside) <= 1, record
    assert passages >= 2


def test_engines_are_spawned_together_and_pass_the_gate_in_the_files_order(daemon: RealDaemon) -> None:
    events = [(r["engine"], r["message"].split(": ")[1]) for r in daemon.journal()]
    first_passage = events.index(("embedding", "passed the gate"))
    assert ("generation", "starting") in events[:first_passage]
    assert ("generation", "passed the gate") not in events[:first_passage]


def test_nothing_is_left_after_the_daemon_was_killed(tmp_path: Path, figure: Figure) -> None:
    """SIGKILL of the daemon while its engines import: the parent-death signal ends them all."""
    killed = RealDaemon(tmp_path)
    gate = str(killed.runtime_dir / "gate.sock")
    killed.wait(lambda: len(marked("MEMORIA_GATE", gate)) >= 2, "both engines spawned")
    began = time.monotonic()
    killed.process.kill()
    killed.stop()
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in _living(gate)], timeout=10)
    assert not alive, gone
    figure(2, "killed to nothing left, vLLM", time.monotonic() - began, "s")


def _living(gate: str) -> list[int]:
    return [pid for pid in marked("MEMORIA_GATE", gate) if psutil.pid_exists(pid)]


def test_a_frozen_engine_core_is_found_and_its_standby_takes_over(tmp_path: Path, figure: Figure) -> None:
    """`/health` stays 200 meanwhile: only the figures of its core tell, and a request that nobody answers."""
    daemon = RealDaemon(tmp_path, only="generation", timeouts={"hang": 3}, engine={"standby": True})
    try:
        daemon.wait_ready()
        daemon.wait(lambda: daemon.status()["generation"]["standby"] == "waiting", "a standby at the gate")
        held = daemon.status()["generation"]["standby_bytes"]
        figure(3, "the standby's host memory, vLLM", held / 2**30, "GiB")
        leader = daemon.status()["generation"]["pid"]
        frozen = core_of(leader)
        frozen.suspend()
        began = time.monotonic()
        with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            with pytest.raises(openai.APIError):
                client.completions.create(model="tiny-generation", prompt="x", max_tokens=2)
            ended = time.monotonic()
            figure(3, "frozen to ended, patience 3 s, vLLM", ended - began, "s")
            daemon.wait_ready()
            figure(3, "ready again by its standby, vLLM", time.monotonic() - ended, "s")
            answers_anyway(client, "generation")
        told = [record["message"] for record in daemon.journal()]
        assert any(message.startswith("generation: stopping: hung: no progress") for message in told)
        assert any(message.startswith("generation: standby takes over") for message in told)
        assert daemon.status()["generation"]["pid"] != leader
        assert not psutil.pid_exists(frozen.pid)
    finally:
        daemon.stop()
