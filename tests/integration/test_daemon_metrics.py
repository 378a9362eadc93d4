"""`GET /metrics` of a running daemon: memoria's own series, and those of engines that come and go."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest

from memoria.text import GIB
from tests.integration.daemon import Box, RunningDaemon, until
from tests.ports import free_ports
from tests.promtool import complaints

COMPLETION = {"prompt": "a", "max_tokens": 3}
GUARD = "guard: {protect: generation, inter_token_ms: 1000}"
KEY = "0123456789abcdef0123"
TOKENS = "vllm:generation_tokens_total"


def scrape(daemon: RunningDaemon, port: int | None = None) -> str:
    answer = daemon.ask("GET", "/metrics", port=port)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return answer.text


def value(text: str, series: str) -> float | None:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.M)
    return None if found is None else float(found[1])


def engines_of(text: str, name: str) -> set[str]:
    return set(re.findall(rf'^{re.escape(name)}{{engine="(\w+)"', text, re.M))


def until_scraped(daemon: RunningDaemon, holds: Callable[[str], bool]) -> None:
    until(lambda: holds(scrape(daemon)))


def test_the_engines_series_are_told_apart_and_the_whole_is_valid(box: Box) -> None:
    box.configure(top=GUARD)
    box.vllm.set_faults("embedding", gpu_bytes=29 * GIB)
    daemon = box.start()
    daemon.until_ready()
    for _ in range(2):
        assert daemon.ask("POST", "/v1/completions", COMPLETION).status == 200
    assert daemon.ask("POST", "/v1/completions", {**COMPLETION, "model": "other"}).status == 404

    text = scrape(daemon)
    assert complaints(text) == []
    assert engines_of(text, TOKENS) == {"embedding", "generation"}
    assert text.count(f"# TYPE {TOKENS} ") == 1
    writer = f'{TOKENS}{{engine="generation",exported_engine="0",model_name="writer"}}'
    assert (value(text, writer) or 0) >= 6

    to = 'engine="generation",route="/v1/completions"'
    assert value(text, f'memoria_requests_total{{{to},code="200"}}') == 2
    assert value(text, f'memoria_requests_total{{{to},code="404"}}') == 1
    assert value(text, f"memoria_request_duration_seconds_count{{{to}}}") == 3
    assert value(text, f"memoria_request_first_byte_seconds_count{{{to}}}") == 3
    assert value(text, 'memoria_requests_in_flight{engine="generation"}') == 0
    assert value(text, 'memoria_engine_memory_bytes{device="gpu 0",engine="embedding"}') == 29 * GIB
    assert value(text, 'memoria_device_memory_others_bytes{device="gpu 0"}') == 0
    assert value(text, 'memoria_guard_active{engine="generation"}') == 0
    phases = re.findall(r'^memoria_engine_start_phase_seconds{engine="(\w+)",phase="(\w+)"', text, re.M)
    assert {("embedding", "at_gate"), ("generation", "at_gate")} <= set(phases)
    assert box.call("status").stdout.splitlines()[-1] == (
        "guard: generation keeps to 1000 ms between tokens; no limit in force"
    )


def test_on_an_engines_own_port_its_series_are_untouched(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    text = scrape(daemon, box.ports.generation)
    assert value(text, f'{TOKENS}{{engine="0",model_name="writer"}}') is not None
    assert "memoria_" not in text
    assert "embedder" not in text


def test_after_a_reload_a_port_has_the_series_of_the_engine_that_has_it_now(box: Box) -> None:
    """And the last start of a removed engine is gone."""
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    (free,) = free_ports(1)
    text = box.file.read_text().replace("  generation:", "  renamed:")
    box.file.write_text(text.replace(str(box.ports.embedding), str(free)))
    daemon.forget()
    assert box.call("reload").returncode == 0
    daemon.told("renamed", "ready")
    writer = scrape(daemon, box.ports.generation)
    assert value(writer, f'{TOKENS}{{engine="0",model_name="writer"}}') is not None
    assert "memoria_" not in writer + scrape(daemon, free)
    whole = scrape(daemon)
    assert engines_of(whole, "memoria_engine_start_phase_seconds") == {"embedding", "renamed"}
    assert value(whole, 'memoria_requests_aborted_total{engine="renamed"}') == 0


def test_the_series_of_a_dead_engine_disappear_and_its_restart_has_a_cause(box: Box) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    box.vllm.set_faults("embedding", import_until=str(box.folder / "go"))
    leader = daemon.leader("embedding")
    daemon.forget()
    os.kill(leader, signal.SIGKILL)
    daemon.told("embedding", "starting")
    text = scrape(daemon)
    assert engines_of(text, TOKENS) == {"generation"}
    assert value(text, 'memoria_engine_metrics_up{engine="embedding"}') == 0
    restarts = 'memoria_engine_restarts_total{engine="embedding",cause="signal"}'
    until_scraped(daemon, lambda text: value(text, restarts) == 1)
    (box.folder / "go").touch()
    until_scraped(daemon, lambda text: engines_of(text, TOKENS) == {"embedding", "generation"})


def test_an_engine_that_hangs_holds_up_neither_metrics_nor_status(box: Box) -> None:
    """Every answer comes while it hangs; it is waited for only once (unit/admin/test_single_flight.py)."""
    box.configure()
    daemon = box.start()
    daemon.until_ready()
    hanging = daemon.leader("generation")
    os.kill(hanging, signal.SIGSTOP)
    try:
        until_scraped(daemon, lambda text: engines_of(text, TOKENS) == {"embedding"})
        assert value(scrape(daemon), 'memoria_engine_metrics_up{engine="generation"}') == 0
        for _ in range(10):
            scrape(daemon)
            assert daemon.engine("generation").running is None
    finally:
        os.kill(hanging, signal.SIGCONT)
    until_scraped(daemon, lambda text: engines_of(text, TOKENS) == {"embedding", "generation"})


def test_metrics_need_a_key_where_keys_are_set(box: Box) -> None:
    box.configure(top="keys: ./keys")
    (box.folder / "keys").write_text(f"prometheus: {KEY}\n")
    (box.folder / "keys").chmod(0o600)
    daemon = box.start()
    daemon.until_listening()
    assert daemon.ask("GET", "/metrics").status == 401
    request = Request(
        f"http://127.0.0.1:{box.ports.main}/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urlopen(request) as answer:
        text = answer.read().decode()
    assert value(text, 'memoria_requests_refused_total{engine="",code="401"}') == 1
    assert KEY not in text


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_metrics_are_read_only(box: Box, method: str) -> None:
    box.configure()
    daemon = box.start()
    daemon.until_listening()
    assert daemon.ask(method, "/metrics").status == 405
