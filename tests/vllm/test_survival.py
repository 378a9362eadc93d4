"""Real engines that die: who is restarted, who is left alone, what stays behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import openai
import psutil
import pytest

from memoria.engine.process.marker import marked
from tests.faults.report import Figure
from tests.faults.traffic import OfVllm, Traffic
from tests.faults.verdict import Verdict, judge_stream, read_stream
from tests.integration.daemon import slug
from tests.stub_engine.process import alive
from tests.vllm.daemon import RealDaemon
from tests.vllm.engine_socket import engine_socket, get


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

    with Traffic(daemon.port, OfVllm(), **{"embeddings" if name == "embedding" else "streams": 2}) as traffic:
        daemon.wait(lambda: traffic.count(Verdict.WHOLE) > 4, "traffic")
        began = time.monotonic()
        os.kill(leader if victim == "leader" else core_of(leader).pid, signal.SIGKILL)
        daemon.wait(lambda: daemon.health()["status"] == "degraded", f"{name} seen dead")
        daemon.wait(lambda: not alive(leader), "the leader's end")
        ending = time.monotonic() - began  # after its core, vLLM's leader ends by itself, in its own time
        answers_anyway(client, other)
        daemon.wait_ready()
        seconds = time.monotonic() - began
    silent = (Verdict.WRONG,) if name == "embedding" else (Verdict.WRONG, Verdict.CUT)
    assert traffic.causes(*silent) == {}
    after = daemon.status()
    # the start that followed, not the first: how long one takes is the machine's doing, too
    besides = seconds - ending - after[name]["start_seconds"]
    allowed = 3 + 1.2 * 2 * 2 ** before[name]["restarts"]
    figure(1, f"{victim} killed to ready, vLLM", seconds, "s")
    figure(1, f"{victim} killed to ready besides its end and the start itself, vLLM", besides, "s")
    figure(1, f"{victim} killed: 3 s + backoff", allowed, "s")
    assert besides <= allowed

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
        what = record.get("event")
        if what == "gate_passed":
            inside.add(record["engine"])
            passages += 1
        elif what == "gate_left":
            inside.discard(record["engine"])
        assert len(inside) <= 1, record
    assert passages >= 2


def test_engines_are_spawned_together_and_pass_the_gate_in_the_files_order(daemon: RealDaemon) -> None:
    events = [(r["engine"], slug(r)) for r in daemon.journal()]
    first_passage = events.index(("embedding", "gate_passed"))
    assert ("generation", "starting") in events[:first_passage]
    assert ("generation", "gate_passed") not in events[:first_passage]


@pytest.mark.parametrize("victim", ["leader", "core"])
def test_a_stream_of_a_killed_engine_ends_in_an_error(
    daemon: RealDaemon, figure: Figure, victim: str
) -> None:
    """Of a dead core vLLM tells in its own way, an event and then `[DONE]`; memoria of a dead leader."""
    daemon.wait_ready()
    leader = daemon.status()["generation"]["pid"]
    pid = leader if victim == "leader" else core_of(leader).pid
    tokens = 1500
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
    body = {
        "prompt": "x",
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    begin = answer.readline()
    os.kill(pid, signal.SIGKILL)
    try:
        rest, ended = answer.read(), True
    except http.client.IncompleteRead as cut:
        rest, ended = cut.partial, False
    connection.close()
    read = read_stream(begin + rest, ended=ended)
    verdict, cause = judge_stream(read, tokens)
    assert len(read.texts) < tokens
    assert verdict in ((Verdict.ERROR,) if victim == "leader" else (Verdict.ERROR, Verdict.ENDED)), cause
    assert read.errors
    figure(26, f"vLLM's {victim} killed: {verdict}", 1)
    daemon.wait_ready()


def test_nothing_is_left_after_the_daemon_was_killed_while_they_start(tmp_path: Path, figure: Figure) -> None:
    """SIGKILL of the daemon while its engines import: the parent-death signal ends them all."""
    killed = RealDaemon(tmp_path)
    gate = str(killed.runtime_dir / "gate.sock")
    try:
        killed.wait(lambda: len(marked("MEMORIA_GATE", gate)) >= 2, "both engines spawned")
        seconds = _kill_daemon(killed)
    finally:
        killed.stop()
    figure(2, "importing: killed to nothing left, vLLM", seconds, "s")
    assert seconds <= 2


def test_nothing_is_left_after_the_daemon_was_killed_at_work(tmp_path: Path, figure: Figure) -> None:
    """SIGKILL of the daemon alone, as in a terminal: both engines ready, and requests in flight in both."""
    killed = RealDaemon(tmp_path)
    try:
        killed.wait_ready()
        with Traffic(killed.port, OfVllm(200), embeddings=8, streams=4, slow_readers=4) as traffic:
            killed.wait(lambda: traffic.count(Verdict.WHOLE) > 40, "traffic")
            killed.wait(lambda: all(e["in_flight"] for e in killed.status().values()), "both at work")
            seconds = _kill_daemon(killed, traffic)
    finally:
        killed.stop()
    assert traffic.causes(Verdict.WRONG) == {}
    figure(2, "at work: killed to nothing left, vLLM", seconds, "s")
    assert seconds <= 2


def _kill_daemon(killed: RealDaemon, traffic: Traffic | None = None) -> float:
    """The seconds until nothing is left of its engines, but for what init takes to reap them."""
    gate = str(killed.runtime_dir / "gate.sock")
    tree = marked("MEMORIA_GATE", gate)
    assert len(tree) >= 2
    began = time.monotonic()
    killed.process.kill()
    if traffic is not None:
        traffic.stop_asking()
    while any(alive(pid) for pid in tree):
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    seconds = time.monotonic() - began
    killed.stop()
    assert marked("MEMORIA_GATE", gate) == []
    return seconds


@pytest.mark.parametrize("standby", [True, False], ids=["with a standby", "without"])
def test_a_frozen_engine_core_is_found_and_followed(tmp_path: Path, figure: Figure, standby: bool) -> None:
    """`/health` stays 200 meanwhile: only the figures of its core tell, and a request that nobody answers."""
    daemon = RealDaemon(tmp_path, only="generation", timeouts={"hang": 3}, engine={"standby": standby})
    how = "by its standby" if standby else "without a standby"
    try:
        daemon.wait_ready()
        if standby:
            daemon.wait(
                lambda: daemon.status()["generation"]["standby"] == "waiting", "a standby at the gate"
            )
            held = daemon.status()["generation"]["standby_bytes"]
            figure(3, "the standby's host memory, vLLM", held / 2**30, "GiB")
        found, ready = _freeze(daemon)
        figure(3, "frozen to ended, patience 3 s, vLLM", found, "s")
        figure(3, f"ready again {how}, vLLM", ready, "s")
        assert found <= 3 + 30
        took_over = any(record.get("event") == "standby_took_over" for record in daemon.journal())
        assert took_over is standby
    finally:
        daemon.stop()


@pytest.mark.faults
def test_a_frozen_engine_core_is_found_at_default_settings(tmp_path: Path, figure: Figure) -> None:
    daemon = RealDaemon(tmp_path, only="generation")
    try:
        daemon.wait_ready()
        found, ready = _freeze(daemon)
        figure(3, "frozen to ended, default settings, vLLM", found, "s")
        figure(3, "ready again, default settings, vLLM", ready, "s")
        assert found <= 150
    finally:
        daemon.stop()


def _freeze(daemon: RealDaemon) -> tuple[float, float]:
    """Freezes the generation engine's core under one request. Seconds until its process is ended, while its
    `/health` says 200, and from then on until another is ready."""
    leader = daemon.status()["generation"]["pid"]
    frozen, engine = core_of(leader), engine_socket(daemon, "generation")
    frozen.suspend()
    began = time.monotonic()
    health = []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_refused, daemon)
        while not _told(daemon, "stopping", "hung: "):
            assert time.monotonic() - began < 300
            with suppress(OSError, http.client.HTTPException):  # it is just being ended
                health.append(get(engine, "/health")[0])
            time.sleep(0.2)
        found = time.monotonic() - began
        assert asked.result()
    assert set(health) == {200}
    assert len(health) > found
    assert _told(daemon, "suspect", "no progress for ")
    daemon.wait_ready()
    ready = time.monotonic() - began - found
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        answers_anyway(client, "generation")
    assert daemon.status()["generation"]["pid"] != leader
    assert not psutil.pid_exists(frozen.pid)
    return found, ready


def _told(daemon: RealDaemon, state: str, begin: str) -> bool:
    """Whether `generation` has gone into this state, for a reason that begins so."""
    return any(
        (record["engine"], slug(record)) == ("generation", state) and record["detail"].startswith(begin)
        for record in daemon.journal()
    )


def _refused(daemon: RealDaemon) -> bool:
    """Whether a completion ends with an error, however long that takes."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        try:
            client.completions.create(model="tiny-generation", prompt="x", max_tokens=2)
        except openai.APIError:
            return True
    return False
