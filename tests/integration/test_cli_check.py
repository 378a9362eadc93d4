"""`memoria check`: the plan on standard output, problems on standard error, nothing started."""

from __future__ import annotations

import json
import os

import pytest

from memoria.text import GIB
from tests.integration.daemon import Box
from tests.stub_nvml import StubProcess
from tests.unit.checkpoints import LLAMA_8B, QWEN3_EMBEDDING, write_checkpoint

PLAN = """\
config  memoria.yaml       2 engines
gpu 0   NVIDIA Stub        100.0 GiB total, 100.0 free
vllm    version unknown    vllm

  embedding   █████               0.30  30.0 GiB
  generation  ███████████         0.60  60.0 GiB
  unplanned   ··                  0.10  10.0 GiB   contexts take about 1.0 of it
ok: ready to run
"""
OK = "ok: ready to run"


@pytest.fixture(autouse=True)
def configured(box: Box) -> None:
    box.configure()


def test_the_plan_is_printed(box: Box) -> None:
    done = box.call("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, PLAN, "")
    assert box.vllm.events() == []


def test_memory_that_others_hold_is_told_under_the_plan(box: Box) -> None:
    box.use_gpu(processes=[StubProcess(os.getpid(), 47)])
    done = box.call("check")
    assert done.returncode == 75
    assert "100.0 GiB total, 53.0 free" in done.stdout
    assert "ok" not in done.stdout
    assert done.stderr.startswith("error: the engines need 91.2 GiB with their CUDA contexts")


def test_fractions_over_the_limit_end_with_78(box: Box) -> None:
    box.file.write_text(box.file.read_text().replace("0.30", "0.45"))
    done = box.call("check")
    assert done.returncode == 78
    assert "  memoria.yaml:11:5  embedding.gpu_memory_utilization   0.45  45.0 GiB\n" in done.stderr
    assert done.stderr.endswith("hint: lower generation to 0.50\n")


def test_without_the_gpu_only_the_file_is_judged(box: Box) -> None:
    done = box.call("check", "--no-gpu", LD_LIBRARY_PATH=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok: memoria.yaml is valid; the GPU was not read\n"


def test_without_the_gpu_fractions_over_the_limit_are_seen_too(box: Box) -> None:
    box.file.write_text(box.file.read_text().replace("0.30", "0.45"))
    done = box.call("check", "--no-gpu", LD_LIBRARY_PATH=None)
    assert done.returncode == 78
    assert "fractions add up to 1.05" in done.stderr


def test_a_model_that_nobody_knows_of_is_warned_of(box: Box) -> None:
    box.file.write_text(box.file.read_text().replace("./models/writer", "org/writer"))
    done = box.call("check", HF_ENDPOINT="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (0, PLAN.replace(OK, "ready to run, with the warnings above"))
    assert done.stderr.startswith(
        "warning: cannot tell whether the hub has `org/writer`: it cannot be reached: Connection refused\n"
        "  memoria.yaml:"
    )
    (warning,) = json.loads(box.call("check", "--json", HF_ENDPOINT="http://127.0.0.1:1").stdout)["warnings"]
    assert "org/writer" in warning["what"]


def test_as_json_it_tells_the_plan(box: Box) -> None:
    done = box.call("check", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["ok"], report["problems"]) == (0, "", True, [])
    (device,) = report["devices"]
    assert (device["label"], device["total_bytes"]) == ("gpu 0", 100 * GIB)
    assert [(engine["name"], engine["requested_bytes"]) for engine in device["engines"]] == [
        ("embedding", 30 * GIB),
        ("generation", 60 * GIB),
    ]


def test_as_json_it_tells_problems_and_ends_with_their_code(box: Box) -> None:
    box.use_gpu(processes=[StubProcess(os.getpid(), 47)])
    done = box.call("check", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (75, False)
    assert report["problems"][0]["hint"].startswith(f"stop pid {os.getpid()}")


def test_what_the_own_running_engines_hold_counts_as_free(box: Box) -> None:
    box.vllm.set_faults("embedding", gpu_bytes=29 * GIB)
    box.vllm.set_faults("generation", gpu_bytes=58 * GIB)
    daemon = box.start()
    daemon.until_ready()
    done = box.call("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "100.0 GiB total, 13.0 free" in done.stdout


HUGE = {**LLAMA_8B, "num_hidden_layers": 180}  # 75.1 GiB of weights


def test_weights_beyond_the_budget_start_nothing(box: Box) -> None:
    """vLLM would load them for minutes, and end."""
    write_checkpoint(box.folder / "models" / "writer", HUGE)
    for command in ("check", "run"):
        done = box.call(command)
        assert done.returncode == 78
        assert done.stderr.startswith(
            "error: the weights of generation alone are 75.1 GiB, its budget is 60.0 GiB\n"
        )
        assert "memoria.yaml:" in done.stderr
        assert "ready to run" not in done.stdout
    assert box.vllm.events("spawned") == []
    report = json.loads(box.call("check", "--json").stdout)
    assert not report["ok"]
    assert "75.1 GiB" in report["problems"][0]["what"]


def test_weights_beyond_the_budget_are_told_also_where_others_hold_the_memory(box: Box) -> None:
    box.use_gpu(processes=[StubProcess(os.getpid(), 47)])
    write_checkpoint(box.folder / "models" / "writer", HUGE)
    done = box.call("check")
    assert done.returncode == 78
    assert done.stderr.count("error: ") == 2


def test_a_reload_with_weights_beyond_their_budget_changes_nothing(box: Box) -> None:
    write_checkpoint(box.folder / "models" / "writer", {**LLAMA_8B, "max_position_embeddings": 8192})
    daemon = box.start()
    daemon.until_ready()
    text = box.file.read_text()
    box.file.write_text(text.replace("0.60", "0.10"))
    done = box.call("reload")
    assert done.returncode == 78
    assert "the weights of generation alone are 15.0 GiB, its budget is 10.0 GiB" in done.stderr
    assert daemon.status().healthy


def test_what_only_the_estimates_doubt_is_a_warning_with_what_would_help(box: Box) -> None:
    write_checkpoint(box.folder / "models" / "embedder", QWEN3_EMBEDDING)
    write_checkpoint(box.folder / "models" / "writer", {**LLAMA_8B, "num_hidden_layers": 140})  # 58.8 GiB
    done = box.call("check")
    assert done.returncode == 0
    assert done.stdout.endswith("ready to run, with the warnings above\n")
    assert "ok" not in done.stdout
    assert done.stderr.startswith("warning: generation needs ")
    assert "  not certain; `memoria plan` shows every term\nhint: " in done.stderr
    (warning,) = json.loads(box.call("check", "--json").stdout)["warnings"]
    assert warning["what"].startswith("generation needs ")
    daemon = box.start()  # an estimate is no reason to refuse
    daemon.until_ready()
    assert daemon.stop() == 0


def test_models_that_fit_are_not_spoken_of(box: Box) -> None:
    write_checkpoint(box.folder / "models" / "embedder", QWEN3_EMBEDDING)
    write_checkpoint(box.folder / "models" / "writer", LLAMA_8B)
    done = box.call("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, PLAN, "")


def test_a_runtime_directory_that_is_a_file_is_told_as_run_would(box: Box) -> None:
    file = box.runtime.with_name("a-file")
    file.touch()
    for command in ("check", "run"):
        done = box.call(command, MEMORIA_RUNTIME_DIR=str(file))
        assert done.returncode == 69
        assert done.stderr.startswith(f"error: cannot use the runtime directory {file}: ")
    assert box.vllm.events() == []
