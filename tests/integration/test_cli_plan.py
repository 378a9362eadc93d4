"""`memoria plan` as a person calls it, on a box with a stub GPU of 100 GiB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hub import serving
from tests.integration.daemon import ROOT, Box
from tests.unit.checkpoints import LLAMA_8B, QWEN3_EMBEDDING

WISHES = """\
listen: 127.0.0.1:{port}
vllm: ./vllm
restart: {{initial: 0.1, cap: 0.2, attempts: 2}}
timeouts: {{start: 20, drain: 10, stop: 1, release: 20}}
log: {{dir: logs, format: json}}
engines:
  embedding:                      # first
    model: ./models/embedder
    runner: pooling
    gpu_memory: 12GiB             # a size
  generation:
    model: ./models/writer
    gpu_memory_utilization: auto  # chosen
    want: {{context: 8192, concurrency: 16}}
"""


@pytest.fixture
def models(box: Box) -> Box:
    for name, config in (("embedder", QWEN3_EMBEDDING), ("writer", LLAMA_8B)):
        (box.folder / "models" / name / "config.json").write_text(json.dumps(config))
    box.configure()
    return box


def wish(box: Box) -> Path:
    box.file.write_text(WISHES.format(port=box.ports.main))
    return box.file


def test_the_gpu_that_is_here_is_planned_for(models: Box) -> None:
    called = models.call("plan")
    assert (called.returncode, called.stderr) == (0, "")
    assert "embedding  0.30  30.0 GiB" in called.stdout
    assert "ok: every engine fits" in called.stdout


def test_a_gpu_that_is_not_here_needs_no_driver(models: Box) -> None:
    called = models.call("plan", "--gpu", "a100 40gb", "--json", LD_LIBRARY_PATH=None)
    planned = json.loads(called.stdout)
    assert planned["devices"][0]["name"] == "NVIDIA A100 40GB"
    # 0.60 of it does not hold a request of Llama's whole context
    assert called.returncode == 78
    assert "131 072" in planned["problems"][0]["what"]


def test_what_does_not_fit_is_told_on_standard_error(models: Box) -> None:
    called = models.call("plan", "--gpu", "40GiB")
    assert called.returncode == 78
    assert "error: generation needs" in called.stderr
    assert "set max_model_len to" in called.stderr


def test_an_unknown_gpu_and_an_unknown_model_are_told(models: Box) -> None:
    called = models.call("plan", "--gpu", "Voodoo")
    assert called.returncode == 78
    assert "no GPU named `Voodoo`" in called.stderr
    models.file.write_text("engines:\n  a: {model: org/name, gpu_memory_utilization: 0.5}\n")
    called = models.call("plan", "--gpu", "24GiB", HF_HUB_OFFLINE="1")
    assert called.returncode == 69
    assert "model `org/name` is not in the local cache" in called.stdout.replace("\n    ", " ")
    assert "not planned: a" in called.stdout


def test_the_file_that_comes_with_memoria_is_planned_whatever_is_there(models: Box) -> None:
    """Neither the models nor a network: their facts are shipped."""
    models.file.write_text((ROOT / "memoria.yaml").read_text())
    called = models.call("plan", "--gpu", "24GiB", HF_ENDPOINT="http://127.0.0.1:1")
    assert (called.returncode, called.stderr) == (0, "")
    assert "not planned" not in called.stdout
    shown = called.stdout.replace("\n    ", " ")
    assert shown.count("the hub did not say: its configuration is the one that memoria knows") == 2
    assert "ok: every engine fits" in called.stdout


def test_what_the_cache_lacks_is_asked_of_the_hub(models: Box) -> None:
    models.file.write_text("engines:\n  a: {model: org/name, gpu_memory_utilization: 0.9}\n")
    with serving() as hub:
        hub.files["main", "config.json"] = json.dumps(LLAMA_8B).encode()
        called = models.call("plan", "--gpu", "40GiB", HF_ENDPOINT=hub.address, HF_HOME=str(models.folder))
        assert "from config.json: not downloaded" in called.stdout
        hub.requests.clear()
        unasked = models.call("plan", "--no-hub", "--gpu", "40GiB", HF_ENDPOINT=hub.address)
        assert (unasked.returncode, hub.requests) == (69, [])


def test_a_model_that_cannot_be_read_is_not_ok(models: Box) -> None:
    (models.folder / "models" / "writer" / "config.json").write_text("{")
    called = models.call("plan")
    assert called.returncode == 69
    assert "is not a JSON object" in called.stdout.replace("\n    ", " ")
    planned = json.loads(models.call("plan", "--json").stdout)
    assert not planned["ok"]


def test_a_wish_for_an_unreadable_model_is_told_with_the_true_reason(models: Box) -> None:
    wish(models)
    (models.folder / "models" / "writer" / "config.json").write_text("{")
    for command in ("check", "plan", "run"):
        called = models.call(command)
        assert called.returncode == 78
        assert "no fraction can be chosen for generation: " in called.stderr
        assert "is not a JSON object" in called.stderr
        assert "`memoria plan` says" not in called.stderr


@pytest.mark.parametrize(
    "config", [{"model_type": "whisper", "is_encoder_decoder": True}, {"hidden_size": 8}]
)
def test_a_wish_for_a_model_of_no_known_kind_is_an_error_and_no_traceback(
    models: Box, config: dict[str, Any]
) -> None:
    wish(models)
    (models.folder / "models" / "writer" / "config.json").write_text(json.dumps(config))
    for command in ("check", "plan", "run"):
        called = models.call(command)
        assert called.returncode == 78
        assert called.stderr.startswith("error: no fraction can be chosen for generation: ")
        assert "Traceback" not in called.stderr


def test_wishes_that_fail_are_told_to_programs_too(models: Box) -> None:
    file = wish(models)
    file.write_text(file.read_text().replace("concurrency: 16", "concurrency: 160"))
    called = models.call("plan", "--json")
    assert called.returncode == 78
    planned = json.loads(called.stdout)
    assert not planned["ok"]
    assert "160 requests" in planned["problems"][0]["what"]


def test_a_choice_is_printed_written_and_then_stands(models: Box) -> None:
    file = wish(models)
    text = file.read_text()
    called = models.call("plan")
    assert called.returncode == 0, called.stderr
    assert "fractions chosen:" in called.stdout
    assert file.read_text() == text
    written = models.call("plan", "--write")
    _, _, listed = written.stdout.partition("fractions written into the file:\n")
    assert listed
    assert "embedding" not in listed  # a size stays a size
    fraction = next(
        line.split()[1] for line in written.stdout.splitlines() if line.startswith("  generation  0")
    )
    assert file.read_text() == text.replace("utilization: auto", f"utilization: {fraction}")
    assert models.call("plan").returncode == 0
    again = models.call("plan", "--write")
    assert again.returncode == 0
    assert again.stdout.endswith("\nnothing to write: no engine has `gpu_memory_utilization: auto`\n")


def test_vllm_is_told_the_size_and_the_choice(models: Box) -> None:
    wish(models)
    daemon = models.start()
    daemon.until_ready()
    given = {}
    for name in ("embedding", "generation"):
        arguments = Path(f"/proc/{daemon.leader(name)}/cmdline").read_bytes().decode().split("\0")
        given[name] = arguments[arguments.index("--gpu-memory-utilization") + 1]
    status = {engine.name: engine for engine in daemon.status().engines}
    assert status["embedding"].budget_bytes == 12 * 2**30
    assert status["generation"].fraction == given["generation"]
    assert float(given["embedding"]) < float(given["generation"]) < 0.95
    assert daemon.stop() == 0


def test_wishes_that_cannot_be_granted_start_nothing(models: Box) -> None:
    file = wish(models)
    file.write_text(file.read_text().replace("concurrency: 16", "concurrency: 160"))
    for command in (("check",), ("plan",), ("run",)):
        called = models.call(*command)
        assert called.returncode == 78
        assert "160 requests of 8 192 tokens" in called.stderr
    assert models.vllm.events("spawned") == []
