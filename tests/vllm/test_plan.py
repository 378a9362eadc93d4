"""The plan against real vLLM: what it says after its start is what was planned before."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from memoria.plan.budgets import kv_cache_bytes
from memoria.plan.footprint.footprint import measure
from memoria.plan.footprint.settings import Machine
from memoria.text import GIB
from memoria.vllm.install.find import data_home, find
from tests.demo_models import MAX_LENGTH
from tests.unit.checkpoints import model_files
from tests.vllm.daemon import RealDaemon
from tests.vllm.tiny_configs import MODELS
from tests.vllm.tiny_models import flags, logged, started, write_model

pytestmark = pytest.mark.vllm


def test_the_demos_engines_have_the_kv_cache_that_was_planned(daemon: RealDaemon) -> None:
    def verified() -> bool:
        return all(engine["planned_kv_tokens"] is not None for engine in daemon.status().values())

    daemon.wait(verified, "every engine compared with its plan")
    for engine in daemon.status().values():
        assert engine["kv_tokens"] == engine["planned_kv_tokens"]


def test_a_hybrid_models_kv_cache_is_planned_to_the_token(tmp_path: Path) -> None:
    """One of many: the figures of the others were recorded for tests/unit/plan/test_kv_cache.py."""
    name = "granite-mamba2"

    config, own = MODELS[name]
    write_model(tmp_path / name, config)
    python = find("auto", data_home(os.environ), "cpu").command[0]
    with started(python, tmp_path / name, own) as process:
        said, _ = logged(process)
    machine = Machine(24 * GIB, sys.platform, on_cpu=True)
    footprint = measure(model_files(config, tokenizer_length=MAX_LENGTH), flags(own), machine, pooling=False)
    capacity = footprint.kv_cache.capacity(kv_cache_bytes(flags(own)) or 0)
    assert capacity.tokens == said["tokens"]
    assert round(capacity.concurrency, 2) == said["concurrency"]
