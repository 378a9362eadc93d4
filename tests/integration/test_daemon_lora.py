"""Case 01 and its kind: LoRA adapters of two engines on one path, by the names that clients use."""

from __future__ import annotations

import json

from memoria.errors import ExitCode
from tests.integration.daemon import Box, RunningDaemon

ENGINES = """\
    args: {{enable-lora: true, lora-modules: ["sql-lora=org/sql"]}}
{env}  second:
    model: ./models/second
    gpu_memory_utilization: 0.05
"""
ALLOWED = '    env: {VLLM_ALLOW_RUNTIME_LORA_UPDATING: "1"}\n'


def started(box: Box, *, env: str = "") -> RunningDaemon:
    box.configure(more_engines=ENGINES.format(env=env))
    daemon = box.start()
    daemon.until_ready()
    return daemon


def status(daemon: RunningDaemon, model: str) -> int:
    return daemon.ask("POST", "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2}).status


def test_an_adapter_in_the_file_is_reached_by_its_name(box: Box) -> None:
    daemon = started(box)
    assert status(daemon, "sql-lora") == 200
    assert status(daemon, "second") == 200
    assert status(daemon, "other-lora") == 404


def test_an_adapter_is_loaded_reached_and_unloaded(box: Box) -> None:
    daemon = started(box, env=ALLOWED)
    assert status(daemon, "style") == 404
    done = box.call("lora", "load", "generation", "style", "org/style")
    assert (done.returncode, done.stdout) == (0, "generation  writer, sql-lora, style\n"), done.stderr
    assert status(daemon, "style") == 200
    done = box.call("lora", "unload", "generation", "style", "--json")
    assert json.loads(done.stdout) == {"engine": "generation", "models": ["writer", "sql-lora"]}
    assert status(daemon, "style") == 404


def test_what_an_engine_refuses_says_why(box: Box) -> None:
    started(box, env=ALLOWED)
    done = box.call("lora", "unload", "generation", "gone")
    assert "The lora adapter 'gone' cannot be found." in done.stderr
    done = box.call("lora", "load", "second", "x", "org/x")
    assert "Engine `second` does not allow this (write `args: {enable-lora: true}`" in done.stderr
    done = box.call("lora", "load", "generation", "second", "org/x")
    assert "Engine `second` has a model `second`" in done.stderr
    done = box.call("lora", "load", "nowhere", "x", "org/x")
    assert "there is no engine `nowhere`" in done.stderr
    assert done.returncode != ExitCode.OK
    assert "Traceback" not in done.stderr
