"""Records of past starts: what makes one stale, and what a damaged one does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from memoria.config.model import EngineConfig
from memoria.plan.budgets import make_budget
from memoria.plan.outcome import Learned, changed, make_outcome
from memoria.plan.records import Comparison, Record, block_bytes, fingerprint, may_pin
from memoria.preflight.records import Records, fingerprint_now, holds
from memoria.supervisor.verifier import make_record
from memoria.text import GIB
from memoria.vllm.install.facts import VllmInstall
from memoria.vllm.log_lines import StartFigures
from tests.unit.checkpoints import GEMMA3_1B, LLAMA_8B, model_files
from tests.unit.plans import config, gpu

ENGINE = config({"a": "0.5"}, vllm_args={"max_model_len": 4096}).engines[0]
RECORD = Record("print", 12 * GIB, 1000, 900, 10**9, 10**9, 9 * 10**8, 0, None)
DEVICE = gpu()


def of(
    engine: EngineConfig = ENGINE,
    vllm: str = "0.32 cuda",
    model: str = "digest",
    environ: Mapping[str, str] | None = None,
    **device: Any,
) -> str:
    return fingerprint(engine, replace(DEVICE, **device), vllm, model, environ or {})


@pytest.mark.parametrize(
    "changed",
    [
        lambda: of(replace(ENGINE, model="other")),
        lambda: of(replace(ENGINE, runner="pooling")),
        lambda: of(replace(ENGINE, gpu_memory_utilization=Decimal("0.51"))),
        lambda: of(replace(ENGINE, vllm_args={"max_model_len": 4097})),
        lambda: of(replace(ENGINE, env={"VLLM_X": "1"})),
        lambda: of(environ={"VLLM_USE_X": "1"}),
        lambda: of(environ={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        lambda: of(vllm="0.33 cuda"),
        lambda: of(model="other digest"),
        lambda: of(name="another GPU"),
        lambda: of(total_bytes=DEVICE.total_bytes + 1),
    ],
    ids=[
        *("model", "runner", "fraction", "flags", "env", "inherited", "torch", "vllm", "files", "gpu"),
        "memory",
    ],
)
def test_a_record_is_stale_when_anything_moves_that_moves_memory(changed: Any) -> None:
    assert changed() != of()


def test_a_record_stays_good_when_nothing_does() -> None:
    assert of(replace(ENGINE, gpu_memory_utilization=Decimal("0.50"))) == of()
    assert of(used_bytes=5, free_bytes=7) == of()
    assert of(environ={"PATH": "/bin", "VLLM_CACHE_ROOT": "/x", "VLLM_LOGGING_LEVEL": "DEBUG"}) == of()
    same = {"VLLM_X": "1"}
    assert of(replace(ENGINE, env=same)) == of(environ=same)


def test_another_torch_makes_a_record_stale(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    engine = replace(ENGINE, model=str(tmp_path))
    install = VllmInstall(("vllm",), "serve", "0.32", "cuda", tmp_path)
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    seen = {fingerprint_now(engine, DEVICE, install, {})}
    for version in ("2.13.0", "2.14.0"):
        folder = packages / f"torch-{version}.dist-info"
        folder.mkdir(parents=True)
        seen.add(fingerprint_now(engine, DEVICE, install, {}))
        folder.rmdir()
    assert len(seen) == 3


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
    [
        *("", "[]", "null", "{}"),
        json.dumps({**RECORD.to_json(), "kv_bytes": -1}),
        json.dumps({**RECORD.to_json(), "is_cold": 2}),
        json.dumps({**RECORD.to_json(), "planned_bar_tokens": None}),
        '{"a":' * 2000,
    ],
    ids=["empty", "list", "null", "blank", "negative", "condition", "bar", "deep"],
)
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    records = Records(tmp_path)
    (tmp_path / "a.json").write_text(text)
    assert records.find("a", "print") is None


def test_a_folder_that_cannot_be_written_is_borne(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Records(tmp_path / "file" / "plan").keep("a", RECORD)


def test_the_error_of_a_plan_is_a_share_of_each_term() -> None:
    tokens, weights = RECORD.comparisons
    assert (tokens.term, weights.term) == ("kv_tokens", "weights_bytes")
    assert tokens.error == pytest.approx(1 / 9)
    assert tokens.is_notable
    assert weights.is_notable
    assert replace(RECORD, planned_kv_tokens=None, planned_weights_bytes=None).comparisons == ()


@pytest.mark.parametrize(
    ("term", "planned", "said", "notable"),
    [
        ("kv_tokens", 1000, 1049, False),
        ("kv_tokens", 1000, 940, True),
        ("weights_bytes", GIB, GIB + 2**25, False),
        ("weights_bytes", 100 * 2**20, 130 * 2**20, False),  # a third, but of next to nothing
        ("weights_bytes", GIB, GIB + 2**27, True),
        ("graph_bytes", GIB, GIB + 2**28, False),
        ("graph_bytes", GIB, 2 * GIB, True),
        ("graph_bytes", 0, GIB, True),
    ],
)
def test_an_error_is_told_when_estimates_are_never_so_wrong(
    term: str, planned: int, said: int, notable: bool
) -> None:
    assert Comparison(term, planned, said).is_notable is notable


def test_remedies_keep_what_was_learnt() -> None:
    budget = make_budget(ENGINE, DEVICE)
    learned = Learned(16 * GIB, GIB, 40 * GIB, budget.requested_bytes)
    outcome = make_outcome(ENGINE, budget, model_files(LLAMA_8B), DEVICE, learned)
    fewer = changed(outcome, DEVICE, max_num_batched_tokens=4096)
    assert fewer.terms.learned
    assert fewer.terms.weights_bytes == 16 * GIB
    assert outcome.terms.step_bytes / 2 < fewer.terms.step_bytes < outcome.terms.step_bytes
    assert fewer.terms.fixed_bytes + fewer.kv_bytes == budget.requested_bytes
    assert changed(outcome, DEVICE, kv_cache_dtype="fp8").terms == outcome.terms


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
    assert record.planned_weights_bytes == outcome.terms.weights_bytes
    assert record.planned_graph_bytes == outcome.footprint.peaks.graph_bytes
    assert record.is_cold is None


def test_a_difference_within_the_bar_is_not_told() -> None:
    budget = make_budget(ENGINE, DEVICE)
    outcome = make_outcome(ENGINE, budget, model_files(LLAMA_8B), DEVICE)
    bar = (
        outcome.capacity.tokens - outcome.kv_cache.capacity(outcome.kv_bytes - outcome.terms.bar_bytes).tokens
    )
    assert Comparison("kv_tokens", 1000, 500, bar=500).is_notable is False
    assert Comparison("kv_tokens", 1000, 499, bar=500).is_notable
    record = make_record("print", StartFigures(kv_tokens=1000), budget, outcome)
    assert record.planned_bar_tokens == bar > 0
    assert record.comparisons[0].bar == bar


@pytest.mark.parametrize(
    ("compile_s", "compiling_s", "is_cold"), [(20.0, 18.0, True), (4.0, None, False), (None, None, None)]
)
def test_a_record_knows_whether_the_compile_cache_was_empty(
    compile_s: float | None, compiling_s: float | None, is_cold: bool | None
) -> None:
    budget = make_budget(ENGINE, DEVICE)
    outcome = make_outcome(ENGINE, budget, model_files(LLAMA_8B), DEVICE)
    figures = StartFigures(kv_tokens=1000, compile_s=compile_s, compiling_s=compiling_s)
    record = make_record("print", figures, budget, outcome)
    assert record.is_cold is is_cold
    warmer = outcome.kv_cache.capacity(outcome.kv_bytes + outcome.terms.cold_bytes).tokens
    assert record.planned_kv_tokens == (warmer if is_cold is False else outcome.capacity.tokens)


def test_a_warm_record_is_not_the_truth_for_a_cold_start(tmp_path: Path) -> None:
    environ = {"VLLM_CACHE_ROOT": str(tmp_path)}
    warm, cold = replace(RECORD, is_cold=False), replace(RECORD, is_cold=True)
    assert not holds(warm, environ)
    assert holds(cold, environ)
    assert holds(RECORD, environ)
    (tmp_path / "torch_compile_cache" / "digest").mkdir(parents=True)
    assert holds(warm, environ)
    assert warm.unmeasured == Learned(RECORD.weights_bytes, RECORD.graph_bytes)
    assert not holds(warm, {"XDG_CACHE_HOME": str(tmp_path)})


def test_a_plan_from_a_warm_record_says_what_a_cold_start_takes_more() -> None:
    engine = replace(ENGINE, vllm_args={**ENGINE.vllm_args, "max_num_batched_tokens": 1024})
    budget = make_budget(engine, DEVICE)
    learned = Learned(16 * GIB, GIB, 40 * GIB, budget.requested_bytes, is_cold=False)
    warm = make_outcome(engine, budget, model_files(LLAMA_8B), DEVICE, learned)
    assert warm.kv_bytes == 40 * GIB
    assert any("warm compile cache" in remark for remark in warm.remarks)
    cold = make_outcome(engine, budget, model_files(LLAMA_8B), DEVICE, replace(learned, is_cold=True))
    assert not any("compile cache" in remark for remark in cold.remarks)


def test_a_size_that_was_given_is_never_pinned_over() -> None:
    assert may_pin(replace(ENGINE, learn=True))
    assert not may_pin(ENGINE)
    assert not may_pin(replace(ENGINE, learn=True, vllm_args={"kv_cache_memory_bytes": 5}))
