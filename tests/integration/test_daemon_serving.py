"""Two engines on one GPU, all ready: what clients and people get. One daemon for all tests here."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from memoria.text import GIB
from tests.integration.daemon import Box, RunningDaemon
from tests.integration.http_client import Streaming

ASK = {"prompt": "a", "max_tokens": 3}
SECOND = """\
  second:
    model: ./models/second
    gpu_memory_utilization: 0.05
"""
# Steers an engine, or tells of it what is nobody's business (vLLM's own, some in its development mode only).
NOT_FOR_CLIENTS = (
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("POST", "/collective_rpc"),
    ("POST", "/pause"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/stub/fault"),
    ("GET", "/server_info"),
    ("GET", "/docs"),
    ("GET", "/status"),
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), nvml_library)
    box.configure(more_engines=SECOND)
    box.vllm.set_faults("embedding", gpu_bytes=29 * GIB)
    yield box
    box.close()


@pytest.fixture(scope="module")
def running(machine: Box) -> Iterator[RunningDaemon]:
    daemon = machine.start()
    daemon.until_ready()
    yield daemon
    assert daemon.stop() == 0
    assert machine.survivors() == []


def test_health_is_answered_as_the_predecessor_did(running: RunningDaemon) -> None:
    answer = running.ask("GET", "/health")
    assert answer.status == 200
    assert list(answer.json) == ["status", "services", "timestamp", "uptime_seconds"]
    assert answer.json["status"] == "healthy"
    assert answer.json["services"] == dict.fromkeys(
        ("router", "embedding", "generation", "second"), "healthy"
    )
    assert datetime.fromisoformat(answer.json["timestamp"]).tzinfo is not None
    assert answer.json["uptime_seconds"] > 0


def test_models_of_all_engines_are_listed_in_the_files_order(running: RunningDaemon) -> None:
    answer = running.ask("GET", "/v1/models")
    assert [model["id"] for model in answer.json["data"]] == ["embedder", "writer", "second"]
    assert {model["max_model_len"] for model in answer.json["data"]} == {2048}
    assert running.ask("GET", "/v1/models/second").json["id"] == "second"


@pytest.mark.parametrize("path", ["/v1//models", "/v1/models/", "/v1//models/"])
def test_a_base_url_that_ends_in_a_slash_lists_the_models_too(running: RunningDaemon, path: str) -> None:
    assert [model["id"] for model in running.ask("GET", path).json["data"]] == [
        "embedder",
        "writer",
        "second",
    ]


def test_an_unknown_model_in_the_path_is_a_404_that_lists_the_others(running: RunningDaemon) -> None:
    answer = running.ask("GET", "/v1/models/other")
    assert answer.status == 404
    assert "`writer`" in answer.error["message"]


def test_a_request_goes_to_the_engine_whose_runner_serves_its_path(running: RunningDaemon) -> None:
    answer = running.ask("POST", "/v1/embeddings", {"input": "a"})
    assert answer.status == 200
    assert answer.json["model"] == "embedder"


def test_an_engine_gets_the_path_that_was_meant(running: RunningDaemon) -> None:
    answer = running.ask("POST", "/v1//embeddings/", {"input": "a"})
    assert (answer.status, answer.json["model"]) == (200, "embedder")


@pytest.mark.parametrize("model", ["writer", "second"])
def test_a_request_goes_to_the_engine_that_has_its_model(running: RunningDaemon, model: str) -> None:
    answer = running.ask("POST", "/v1/completions", {**ASK, "model": model})
    assert answer.status == 200
    assert answer.json["model"] == model


def test_an_unknown_model_is_a_404_in_openais_shape(running: RunningDaemon) -> None:
    answer = running.ask("POST", "/v1/completions", {**ASK, "model": "gpt-4"})
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert answer.error["message"] == "The model `gpt-4` does not exist. Models: `writer`, `second`"


def test_no_model_is_a_400_where_several_engines_could_be_meant(running: RunningDaemon) -> None:
    answer = running.ask("POST", "/v1/completions", ASK)
    assert answer.status == 400
    assert answer.error["code"] == "model_required"


def test_streams_end_as_the_engine_ends_them(running: RunningDaemon, machine: Box) -> None:
    with Streaming(machine.ports.main, {**ASK, "model": "writer"}) as stream:
        events = stream.rest()
    assert len(events) == 4
    assert events[-1] == "[DONE]"


def test_an_engines_own_port_answers_for_that_engine_alone(running: RunningDaemon, machine: Box) -> None:
    own = machine.ports.generation
    assert [m["id"] for m in running.ask("GET", "/v1/models", port=own).json["data"]] == ["writer"]
    assert running.ask("POST", "/v1/completions", ASK, port=own).json["model"] == "writer"
    answer = running.ask("POST", "/v1/embeddings", {"input": "a"}, port=own)
    assert answer.status == 404
    assert answer.error["code"] == "route_not_served"


@pytest.mark.parametrize(("method", "path"), NOT_FOR_CLIENTS)
def test_what_controls_an_engine_does_not_exist(running: RunningDaemon, method: str, path: str) -> None:
    answer = running.ask(method, path, {} if method == "POST" else None)
    assert answer.status == 404
    assert answer.error["code"] == "route_not_found"


def test_a_base_url_without_v1_is_told_the_path(running: RunningDaemon) -> None:
    answer = running.ask("POST", "/chat/completions", ASK)
    assert answer.status == 404
    assert "did you mean `/v1/chat/completions`?" in answer.error["message"]
    escaped = running.ask("POST", "/v1%2Fembeddings", ASK)
    assert escaped.error["message"] == "No route POST /v1%2Fembeddings"  # as it came


def test_only_its_own_user_may_open_the_admin_socket(running: RunningDaemon, machine: Box) -> None:
    assert stat.S_IMODE((machine.runtime / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(machine.runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE((machine.runtime / "engines").stat().st_mode) == 0o700
    assert machine.runtime.stat().st_uid == os.getuid()


def test_status_is_a_table_of_engines(running: RunningDaemon, machine: Box) -> None:
    done = machine.call("status")
    assert (done.returncode, done.stderr) == (0, "")
    header, embedding, generation, second = done.stdout.splitlines()
    assert header.split() == [
        "ENGINE",
        "STATE",
        "SINCE",
        "RESTARTS",
        "GPU",
        "GiB",
        "KV",
        "RUN/WAIT",
        "REQ/S",
        *("TTFT", "p95", "TOTAL", "p95", "TOKENS/S"),
    ]
    assert embedding.startswith("embedding   ready")
    assert " 29.0/30.0  " in embedding
    assert "/60.0  " in generation
    assert " 0/0 " in generation
    assert second.startswith("second ")


def test_status_as_json_holds_what_the_table_shows(running: RunningDaemon, machine: Box) -> None:
    status = json.loads(machine.call("status", "--json").stdout)
    assert status["status"] == "healthy"
    assert status["pid"] == running.pid
    assert status["url"] == f"http://127.0.0.1:{machine.ports.main}"
    assert status["devices"][0]["used_bytes"] == 29 * GIB
    embedding = status["engines"][0]
    assert (embedding["used_bytes"], embedding["budget_bytes"]) == (29 * GIB, 30 * GIB)
    assert (embedding["kv_tokens"], embedding["max_model_len"]) == (37440, 2048)
    assert embedding["port"] == machine.ports.embedding


def test_logs_show_one_engine_or_all_by_their_names(running: RunningDaemon, machine: Box) -> None:
    one = machine.call("logs", "generation", "-n", "1")
    assert (one.returncode, one.stdout) == (0, "INFO:     Application startup complete.\n")
    every = machine.call("logs", "-n", "1").stdout.splitlines()
    assert [line.partition(" | ")[0].strip() for line in every] == ["embedding", "generation", "second"]


def test_json_logs_are_one_object_per_line_and_nothing_else_is_printed(running: RunningDaemon) -> None:
    records = [json.loads(line) for line in running.err.lines]
    assert all(record.keys() >= {"time", "level", "logger", "message"} for record in records)
    assert {record["engine"] for record in records} >= {"embedding", "generation", "second"}
    assert running.out.lines == []


def test_a_second_daemon_with_the_same_configuration_is_refused(running: RunningDaemon, machine: Box) -> None:
    done = machine.call("run")
    assert done.returncode == 69
    assert f"memoria is already running with this configuration, pid {running.pid}" in done.stderr
    assert running.ask("GET", "/readyz").status == 200
