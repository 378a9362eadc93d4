"""What a start takes beside the text model's weights, and how sure the plan is of it. Logged starts are in
test_oracle.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memoria.plan.budgets import make_budget
from memoria.plan.checkpoint import ModelFiles, Tensor
from memoria.plan.footprint.footprint import Footprint, measure
from memoria.plan.footprint.kv_cache import Attention
from memoria.plan.footprint.settings import Machine
from memoria.plan.outcome import Outcome, make_outcome
from memoria.plan.plan import make_plan
from memoria.plan.problems import plan_problems
from memoria.preflight.outcomes import make_outcomes, read_engine_model
from memoria.text import GIB
from tests.oracle.compare import read_configs
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files, write_checkpoint
from tests.unit.plans import config, gpu

CONFIGS = read_configs()
HYBRID, VISION, GPT_OSS = CONFIGS["Qwen3.5-9B"], CONFIGS["Qwen2.5-VL-7B"], CONFIGS["gpt-oss-20b"]
EAGLE3 = {
    **CONFIGS["Llama-3.1-8B"],
    "architectures": ["LlamaForCausalLMEagle3"],
    "num_hidden_layers": 1,
    "draft_vocab_size": 32000,
}


def of(
    found: dict[str, Any],
    name: str = "NVIDIA H100",
    vllm: tuple[int, int] = (0, 32),
    files: ModelFiles | None = None,
    **args: Any,
) -> Footprint:
    return measure(
        files or model_files(found), args, Machine(80 * GIB, name, vllm=vllm), pooling=False, environ={}
    )


def planned(found: dict[str, Any], fraction: str, total: int = 24, **args: Any) -> Outcome:
    device = gpu(total=total * GIB, reserved=0)
    engine = config({"a": fraction}, vllm_args=args).engines[0]
    return make_outcome(engine, make_budget(engine, device), model_files(found), device)


def attention(footprint: Footprint) -> list[Attention]:
    layers = (group.layer for group in footprint.kv_cache.groups)
    return [layer for layer in layers if isinstance(layer, Attention)]


# ---------------------------------------------------------------------- a step


def test_a_cold_compile_cache_costs_one_more_table_of_embeddings() -> None:
    peaks = of(models.LLAMA_8B, max_num_batched_tokens=2048, max_num_seqs=16).peaks
    table = 2 * 128256 * 4096
    assert table < peaks.step_bytes + peaks.cold_bytes < table + 2**26
    assert of(models.LLAMA_8B, enforce_eager=True).peaks.cold_bytes == 0
    assert of(models.LLAMA_8B, vllm=(0, 15)).peaks.cold_bytes == 0


def test_a_cold_start_is_what_is_planned_for_and_said() -> None:
    outcome = planned(models.LLAMA_8B, "0.9", max_num_batched_tokens=2048, max_num_seqs=16)
    assert outcome.terms.cold_bytes > GIB // 2
    assert outcome.terms.step_bytes > outcome.terms.cold_bytes
    assert any("empty compile cache" in remark for remark in outcome.remarks)


@pytest.mark.parametrize(
    ("vllm", "environ", "rows"),
    [
        ((0, 32), {}, 2),
        ((0, 28), {"VLLM_USE_V2_MODEL_RUNNER": "0"}, 14.3),
        ((0, 15), {}, 38.4),
        ((0, 15), {"VLLM_USE_FLASHINFER_SAMPLER": "1"}, 10.5),
    ],
)
def test_a_sampler_takes_what_its_version_and_runner_keep(
    vllm: tuple[int, int], environ: dict[str, str], rows: float
) -> None:
    args = {"max_num_batched_tokens": 1024, "max_num_seqs": 1024, "enforce_eager": True}
    machine = Machine(80 * GIB, "NVIDIA H100", vllm=vllm)
    peaks = measure(model_files(models.LLAMA_8B), args, machine, pooling=False, environ=environ).peaks
    assert peaks.step_bytes == pytest.approx(rows * 1024 * 128256, rel=0.05)


@pytest.mark.parametrize(("vllm", "runner"), [((0, 25), "0"), ((0, 30), "1"), ((0, 32), "1")])
def test_graphs_are_taken_off_the_kv_cache(vllm: tuple[int, int], runner: str) -> None:
    machine = Machine(24 * GIB, "RTX 4090", vllm=vllm)
    environ = {"VLLM_USE_V2_MODEL_RUNNER": runner}
    peaks = measure(model_files(models.LLAMA_8B), {}, machine, pooling=False, environ=environ).peaks
    assert peaks.charged_bytes > peaks.graph_bytes > 0


@pytest.mark.parametrize(("vllm", "runner"), [((0, 19), "0"), ((0, 27), "1")])
def test_graphs_that_are_not_taken_off_lie_beyond_the_budget(vllm: tuple[int, int], runner: str) -> None:
    machine = Machine(24 * GIB, "RTX 4090", vllm=vllm)
    environ = {"VLLM_USE_V2_MODEL_RUNNER": runner}
    peaks = measure(model_files(models.LLAMA_8B), {}, machine, pooling=False, environ=environ).peaks
    assert peaks.charged_bytes == 0 < peaks.graph_bytes


def test_graphs_are_counted_as_they_are_captured() -> None:
    """35 sizes to 256 and 51 to 512; a step that only decodes is captured up to `max_num_seqs`."""
    each = of(models.LLAMA_8B, max_num_seqs=4, cudagraph_capture_sizes=[512]).peaks.graph_bytes
    cases: tuple[tuple[dict[str, Any], int], ...] = (
        ({"max_num_seqs": 256}, 51 + 35),
        ({"max_num_seqs": 128}, 35 + 19),
        ({"max_num_seqs": 256, "max_cudagraph_capture_size": 16}, 5 + 5),
        ({"max_num_seqs": 4, "cudagraph_capture_sizes": [1, 2, 8]}, 3 + 2),
    )
    for args, graphs in cases:
        assert of(models.LLAMA_8B, **args).peaks.graph_bytes == pytest.approx(graphs * each, rel=0.001)
    assert of(models.LLAMA_8B, "NVIDIA B200").peaks.graph_bytes > of(models.LLAMA_8B).peaks.graph_bytes


# ---------------------------------------------------------------------- towers and experts


def test_a_vision_tower_has_weights_and_a_step_of_its_own() -> None:
    whole, text = of(VISION), of(VISION, language_model_only=True)
    assert whole.weights.total_bytes - text.weights.total_bytes == pytest.approx(1.25 * GIB, rel=0.05)
    assert whole.peaks.step_bytes > text.peaks.step_bytes
    assert of(VISION, limit_mm_per_prompt={"image": 0, "video": 0}).weights == text.weights
    assert of(VISION, limit_mm_per_prompt={"image": 0, "video": 1}).weights == whole.weights
    assert whole.caveats == ()


def test_a_tower_that_config_json_does_not_describe_is_said_to_be_missing() -> None:
    strange = {**models.LLAMA_8B, "vision_config": {"kind": "unheard of"}}
    (caveat,) = of(strange).caveats
    assert "encoder of images or audio" in caveat
    assert of(strange, language_model_only=True).caveats == ()


def test_a_tower_that_is_left_out_is_not_weighed_from_its_headers() -> None:
    tower = Tensor("visual.blocks.0.attn.qkv.weight", "BF16", (1024, 1024))
    files = model_files(VISION, tower, Tensor("model.norm.weight", "BF16", (3584,)))
    assert of(VISION, files=files).weights.total_bytes == 2 * 1024**2 + 2 * 3584
    assert of(VISION, files=files, language_model_only=True).weights.total_bytes == 2 * 3584


@pytest.mark.parametrize(
    ("name", "logged"), [("NVIDIA H100", 13.47), ("NVIDIA A100-SXM4-80GB", 13.72), ("NVIDIA GB10", 13.72)]
)
def test_mxfp4_experts_are_padded_to_their_kernels_tiles(name: str, logged: float) -> None:
    assert of(GPT_OSS, name).weights.total_bytes / GIB == pytest.approx(logged, abs=0.1)


def test_a_router_that_is_left_out_leaves_the_gate_projection_in() -> None:
    quantised = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate_proj"],
    }
    one = of({**models.LLAMA_8B, "quantization_config": quantised}).weights.total_bytes
    listed = [*quantised["modules_to_not_convert"], "model.layers.0.mlp.gate_proj"]
    two = of(
        {**models.LLAMA_8B, "quantization_config": {**quantised, "modules_to_not_convert": listed}}
    ).weights.total_bytes
    assert two - one == pytest.approx(4096 * 14336, rel=0.01)


# ---------------------------------------------------------------------- adapters and drafts


def test_adapters_have_slots_and_graphs_of_their_own() -> None:
    plain, one = of(models.LLAMA_8B), of(models.LLAMA_8B, enable_lora=True)
    slot = one.weights.total_bytes - plain.weights.total_bytes
    assert slot == pytest.approx(0.084 * GIB, rel=0.15)
    many = of(models.LLAMA_8B, enable_lora=True, max_loras=4, max_lora_rank=64)
    assert many.weights.total_bytes - plain.weights.total_bytes == 16 * slot
    assert one.peaks.graph_bytes == pytest.approx(2 * plain.peaks.graph_bytes, abs=1)
    assert one.caveats == ()


def test_a_model_that_drafts_itself_loads_its_last_layer_and_caches_it() -> None:
    args: dict[str, Any] = {"max_model_len": 262144, "enable_prefix_caching": False}
    speculation = {"method": "mtp", "num_speculative_tokens": 3}
    plain = of(CONFIGS["Qwen3.8-27B"], vllm=(0, 25), **args)
    drafting = of(CONFIGS["Qwen3.8-27B"], vllm=(0, 25), **args, speculative_config=speculation)
    assert drafting.weights.total_bytes - plain.weights.total_bytes == pytest.approx(0.79 * GIB, rel=0.05)
    # as logged: blocks of 800 tokens in place of 784, 4.54 requests in 80.17 GiB
    assert {layer.block_size for layer in attention(drafting)} == {800}
    assert {layer.block_size for layer in attention(plain)} == {784}
    assert drafting.kv_cache.capacity(int(80.17 * GIB)).concurrency == pytest.approx(4.54, abs=0.005)
    assert drafting.caveats == ()


def test_a_draft_model_has_weights_and_a_cache(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "target", models.LLAMA_8B)
    write_checkpoint(tmp_path / "eagle3", EAGLE3)
    speculation = {"model": str(tmp_path / "eagle3"), "method": "eagle3", "num_speculative_tokens": 3}
    engine = replace(
        config({"a": "0.9"}).engines[0],
        model=str(tmp_path / "target"),
        vllm_args={"speculative_config": speculation},
    )
    files = read_engine_model(engine, {})
    assert files.draft is not None
    plain = of(models.LLAMA_8B, files=replace(files, draft=None))
    drafting = of(models.LLAMA_8B, files=files, **engine.vllm_args)
    assert drafting.token_bytes == plain.token_bytes // 32 * 33
    assert drafting.weights.total_bytes > plain.weights.total_bytes + GIB // 4
    assert drafting.caveats == plain.caveats


def test_a_draft_model_that_is_not_here_is_said_to_be_missing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "target", models.LLAMA_8B)
    args: dict[str, Any] = {
        "speculative_config": {"model": str(tmp_path / "gone"), "num_speculative_tokens": 3}
    }
    engine = replace(config({"a": "0.9"}).engines[0], model=str(tmp_path / "target"), vllm_args=args)
    files = read_engine_model(engine, {})
    assert files.draft is None
    assert any("draft model" in caveat for caveat in of(models.LLAMA_8B, files=files, **args).caveats)


def test_tokens_proposed_from_the_text_need_no_memory() -> None:
    args: dict[str, Any] = {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 3}'}
    assert of(models.LLAMA_8B, **args).caveats == ()
    assert of(models.LLAMA_8B, **args).weights == of(models.LLAMA_8B).weights


# ---------------------------------------------------------------------- states under whole graphs


def test_fewer_blocks_than_sequences_of_a_hybrid_are_refused_with_the_number_that_fits() -> None:
    device = gpu(total=24 * GIB, reserved=0)
    wanted = config({"a": "0.95"}, vllm_args={"max_model_len": 4096, "max_num_seqs": 256})
    plan = make_plan(wanted, {0: device})
    files = {"a": model_files(HYBRID)}
    (problem,) = plan_problems(wanted, plan, make_outcomes(wanted, plan, files, {}))
    assert "a state for each of 256 sequences (max_num_seqs)" in problem.what
    assert "set max_num_seqs to" in (problem.hint or "")
    assert plan_problems(wanted, plan, make_outcomes(wanted, plan, files, {}, vllm="0.31.0")) == ()
    eager = config({"a": "0.95"}, vllm_args={"max_model_len": 4096, "enforce_eager": True})
    assert plan_problems(eager, make_plan(eager, {0: device}), make_outcomes(eager, plan, files, {})) == ()


# ---------------------------------------------------------------------- how sure it is


def test_what_fits_by_less_than_the_error_is_doubtful() -> None:
    args: dict[str, Any] = {"max_model_len": 4096, "max_num_seqs": 16}
    sure = planned(models.LLAMA_8B, "0.9", **args)
    assert sure.fits
    assert not sure.is_doubtful
    needed = sure.needed_bytes
    tight = planned(models.LLAMA_8B, f"{(needed - sure.terms.bar_bytes / 2) / (24 * GIB):.4f}", **args)
    assert tight.fits
    assert tight.is_doubtful
    assert any(remark.startswith("doubtful") for remark in tight.remarks)
    least = planned(models.LLAMA_8B, f"{(needed + 2**20) / (24 * GIB):.4f}", **args)
    assert least.fits
    assert not least.is_doubtful


def test_the_bar_is_wider_where_published_starts_differ_more() -> None:
    text, experts, unified = of(models.LLAMA_8B), of(models.MIXTRAL), of(models.LLAMA_8B, "NVIDIA GB10")
    assert text.peaks.bar_bytes < experts.peaks.bar_bytes < unified.peaks.bar_bytes
