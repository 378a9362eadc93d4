"""Records of past starts: what makes one stale, and what a damaged one does."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from memoria.config.model import EngineConfig
from memoria.engine.phases import StartFigures
from memoria.plan.budgets import make_budget
from memoria.plan.outcome import make_outcome
from memoria.plan.records import Record, block_bytes, fingerprint, is_worth_telling, may_pin
from memoria.supervisor.records import Records, fingerprint_now
from memoria.supervisor.verifier import make_record
from memoria.text import GIB
from memoria.vllm_env.install import VllmInstall
from tests.unit.checkpoints import GEMMA3_1B, LLAMA_8B, model_files
from tests.unit.plans import config, gpu

ENGINE = config({"a": "0.5"}, vllm_args={"max_model_len": 4096}).engines[0]
RECORD = Record("print", 12 * GIB, 1000, 900, 10**9, 10**8, 0)
DEVICE = gpu()


def of(engine: EngineConfig = ENGINE, vllm: str = "0.32 cuda", model: str = "digest", **device: Any) -> str:
    return fingerprint(engine, replace(DEVICE, **device), vllm, model)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: of(replace(ENGINE, model="other")),
        lambda: of(replace(ENGINE, runner="pooling")),
        lambda: of(replace(ENGINE, gpu_memory_utilization=Decimal("0.51"))),
        lambda: of(replace(ENGINE, vllm_args={"max_model_len": 4097})),
        lambda: of(replace(ENGINE, env={"VLLM_X": "1"})),
        lambda: of(vllm="0.33 cuda"),
        lambda: of(model="other digest"),
        lambda: of(name="another GPU"),
        lambda: of(total_bytes=DEVICE.total_bytes + 1),
    ],
    ids=["model", "runner", "fraction", "flags", "env", "vllm", "files", "gpu", "memory"],
)
def test_a_record_is_stale_when_anything_moves_that_moves_memory(changed: Any) -> None:
    assert changed() != of()


def test_a_record_stays_good_when_nothing_does() -> None:
    assert of(replace(ENGINE, gpu_memory_utilization=Decimal("0.50"))) == of()
    assert of(used_bytes=5, free_bytes=7) == of()


def test_the_weights_files_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    install = VllmInstall(("vllm",), "serve", "0.32", "cuda", None)
    engine = replace(ENGINE, model=str(tmp_path))
    before = fingerprint_now(engine, DEVICE, install, {})
    (tmp_path / "model.safetensors").write_bytes(b"x")
    after = fingerprint_now(engine, DEVICE, install, {})
    assert None not in (before, after)
    assert before != after
    assert fingerprint_now(replace(engine, model="/nowhere"), DEVICE, install, {}) is None


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    records = Records(tmp_path / "plan")
    assert records.is_empty
    records.keep("a", RECORD)
    assert records.find("a", "print") == RECORD
    assert records.find("a", "another") is None
    assert records.find("a", None) is None
    records.forget("a")
    assert records.find("a", "print") is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", json.dumps({**RECORD.to_json(), "kv_bytes": -1}), '{"a":' * 2000],
    ids=["empty", "list", "null", "blank", "negative", "deep"],
)
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    records = Records(tmp_path)
    (tmp_path / "a.json").write_text(text)
    assert records.find("a", "print") is None


def test_a_folder_that_cannot_be_written_is_borne(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Records(tmp_path / "file" / "plan").keep("a", RECORD)


def test_the_error_of_a_plan_is_a_share() -> None:
    assert RECORD.error == pytest.approx(1 / 9)
    assert is_worth_telling(RECORD)
    assert replace(RECORD, planned_kv_tokens=None).error is None
    assert not is_worth_telling(replace(RECORD, planned_kv_tokens=990))


@pytest.mark.parametrize("model", [LLAMA_8B, GEMMA3_1B], ids=["full", "hybrid"])
def test_tokens_in_a_log_become_the_bytes_of_their_blocks(model: dict[str, Any]) -> None:
    outcome = make_outcome(ENGINE, make_budget(ENGINE, DEVICE), model_files(model), DEVICE)
    tokens = outcome.capacity.tokens
    size = block_bytes(outcome.kv_cache, tokens, 4096)
    assert size is not None
    assert size <= outcome.kv_bytes < size + outcome.kv_cache.block_bytes
    assert outcome.kv_cache.capacity(size).tokens == tokens
    assert block_bytes(outcome.kv_cache, tokens, 4095) is None


def test_what_was_learnt_adds_up_to_the_budget() -> None:
    budget = make_budget(ENGINE, DEVICE)
    outcome = make_outcome(ENGINE, budget, model_files(LLAMA_8B), DEVICE)
    figures = StartFigures(max_model_len=4096, weights_gib=14.99, kv_tokens=400_000, graphs_gib=0.31)
    record = make_record("print", figures, budget, outcome)
    again = make_outcome(ENGINE, budget, model_files(LLAMA_8B), DEVICE, record.learned)
    assert again.terms.fixed_bytes + again.kv_bytes == budget.requested_bytes
    assert again.capacity.tokens == 400_000
    assert again.terms.weights_bytes == round(14.99 * GIB)


def test_a_size_that_was_given_is_never_pinned_over() -> None:
    assert may_pin(replace(ENGINE, learn=True))
    assert not may_pin(ENGINE)
    assert not may_pin(replace(ENGINE, learn=True, vllm_args={"kv_cache_memory_bytes": 5}))
