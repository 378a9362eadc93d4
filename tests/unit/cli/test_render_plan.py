"""Golden files of the `memoria plan` screen. `MEMORIA_UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from memoria.cli.commands.plan import as_data
from memoria.cli.screens.plan import render_outcomes
from memoria.errors import Problem
from memoria.plan.problems import plan_problems
from memoria.text import GIB
from tests.unit.cli.test_render_check import check_golden
from tests.unit.plan_examples import (
    DEFAULT_FLAGS,
    default_config,
    planned,
    screen,
)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("gpu", ["RTX 4090", "A100 40GB", "H200"])
def test_the_plan_of_the_default_models(gpu: str, width: int) -> None:
    check_golden(f"plan-{gpu.lower().replace(' ', '-')}-{width}", screen(default_config(), gpu, width))


def test_the_plan_in_colour_is_the_same_plan() -> None:
    painted = screen(default_config(), "H200", 80, color=True)
    check_golden("plan-h200-80-color", painted)
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == screen(default_config(), "H200", 80)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, screen(default_config(), "RTX 4090", width).splitlines())) <= width


def test_a_model_that_is_not_here_is_shown_with_what_is_missing() -> None:
    wanted = default_config()
    unknown = {"generation": Problem("model `x` is not in the local cache", (), "download it")}
    plan, outcomes = planned(wanted, "RTX 4090", unknown)
    text = render_outcomes(wanted, plan, outcomes, 80, False, ok=True)
    assert "model `x` is not in the local cache" in text
    assert "download it" in text
    assert "not planned: generation; everything else fits" in text
    assert not as_data(plan, outcomes, ())["ok"]


@pytest.mark.parametrize(
    ("embedding", "generation", "flags", "what", "hints"),
    [
        (
            "0.30",
            "0.30",
            {},
            "generation needs 36.0 GiB of KV cache for one request of 262 144 tokens",
            ["set max_model_len to"],
        ),
        (
            "0.05",
            "0.60",
            DEFAULT_FLAGS["generation"],
            "embedding needs",
            ["raise gpu_memory_utilization to 0.26"],
        ),
        (
            "0.30",
            "0.20",
            DEFAULT_FLAGS["generation"],
            "before its KV cache",
            ["raise gpu_memory_utilization to"],
        ),
        (
            "0.30",
            "0.18",
            {"max_num_seqs": 64},
            "before its KV cache",
            ["raise gpu_memory_utilization to 0.6", " and set max_model_len to"],
        ),
        (
            "0.60",
            "0.30",
            {"max_model_len": 8192, "max_num_seqs": 1024, "max_num_batched_tokens": 16384},
            "generation needs",
            ["raise gpu_memory_utilization to", "set max_num_seqs to"],
        ),
    ],
    ids=["length", "embedding", "weights", "both", "sequences"],
)
def test_what_does_not_fit_is_told_with_the_smallest_changes(
    embedding: str, generation: str, flags: dict[str, Any], what: str, hints: list[str]
) -> None:
    wanted = default_config({**DEFAULT_FLAGS, "generation": flags}, embedding, generation)
    plan, outcomes = planned(wanted, "RTX 4090")
    (problem,) = plan_problems(wanted, plan, outcomes)
    assert what in problem.what
    for hint in hints:
        assert hint in (problem.hint or "")


def test_a_kv_cache_that_was_given_must_fit_beside_the_weights() -> None:
    """vLLM takes it whatever the fraction is (`kv_cache_memory_bytes` in vllm/config/cache.py)."""
    flags = {**DEFAULT_FLAGS["generation"], "kv_cache_memory_bytes": "12G"}
    wanted = default_config({**DEFAULT_FLAGS, "generation": flags})
    plan, outcomes = planned(wanted, "RTX 4090")
    assert plan.config_problems == ()
    alone, together = plan_problems(wanted, plan, outcomes)
    outcome = outcomes.known["generation"]
    assert outcome.taken_bytes == outcome.terms.fixed_bytes + 12 * GIB
    assert alone.what.startswith("generation takes 1")
    assert "12.0 GiB of KV cache, as given" in alone.what
    assert "in all" in together.what
    room = int(re.findall(r"kv_cache_memory_bytes to (\d+)", alone.hint or "")[0])
    for size, problems in ((room, 0), (room + 1, 1)):
        fitted = default_config(
            {**DEFAULT_FLAGS, "generation": {**flags, "kv_cache_memory_bytes": str(size)}}
        )
        plan, outcomes = planned(fitted, "RTX 4090")
        assert len(plan_problems(fitted, plan, outcomes)) == problems


def test_a_kv_cache_that_was_given_too_small_is_raised_not_the_fraction() -> None:
    flags = {**DEFAULT_FLAGS["generation"], "kv_cache_memory_bytes": "100M"}
    wanted = default_config({**DEFAULT_FLAGS, "generation": flags})
    plan, outcomes = planned(wanted, "H200")
    (problem,) = plan_problems(wanted, plan, outcomes)
    least = outcomes.known["generation"].kv_cache.least_bytes
    assert f"set kv_cache_memory_bytes to {least}" in (problem.hint or "")
    assert "gpu_memory_utilization" not in (problem.hint or "")


def test_each_remedy_by_itself_makes_it_fit() -> None:
    wanted = default_config({**DEFAULT_FLAGS, "generation": {"max_num_seqs": 64}}, "0.30", "0.55")
    plan, outcomes = planned(wanted, "H200")
    assert plan_problems(wanted, plan, outcomes) == ()
    plan, outcomes = planned(wanted, "24GiB")
    (problem,) = plan_problems(wanted, plan, outcomes)
    length = int(re.findall(r"max_model_len to (\d+)", problem.hint or "")[0])
    flags = {"max_num_seqs": 64, "max_model_len": length}
    for more, problems in ((0, 0), (16, 1)):
        changed = default_config(
            {**DEFAULT_FLAGS, "generation": {**flags, "max_model_len": length + more}}, "0.30", "0.55"
        )
        plan, outcomes = planned(changed, "24GiB")
        assert len(plan_problems(changed, plan, outcomes)) == problems


def test_a_context_longer_than_the_models_own_is_a_problem_and_never_proposed() -> None:
    wanted = default_config({**DEFAULT_FLAGS, "generation": {"max_model_len": 300_000}})
    plan, outcomes = planned(wanted, "H200")
    (problem,) = plan_problems(wanted, plan, outcomes)
    assert "300 000 tokens, its model was made for 262 144" in problem.what
    assert "set max_model_len to 262144 or less" in (problem.hint or "")
    plan, outcomes = planned(wanted, "RTX 4090")
    lengths = [
        int(length)
        for problem in plan_problems(wanted, plan, outcomes)
        for length in re.findall(r"max_model_len to (\d+)", problem.hint or "")
    ]
    assert lengths
    assert max(lengths) <= 262_144
    allowed = replace(wanted.engine("generation"), env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    wanted = replace(wanted, engines=(wanted.engine("embedding"), allowed))
    plan, outcomes = planned(wanted, "H200")
    assert plan_problems(wanted, plan, outcomes) == ()


def test_auto_length_is_what_the_memory_allows() -> None:
    flags = {**DEFAULT_FLAGS, "generation": {"max_model_len": "auto"}}
    _, outcomes = planned(default_config(flags), "RTX 4090")
    outcome = outcomes.known["generation"]
    assert outcome.fits
    assert 8192 < outcome.max_model_len < 262_144


def test_the_plan_for_programs_holds_every_term() -> None:
    wanted = default_config()
    plan, outcomes = planned(wanted, "H200")
    data = json.loads(json.dumps(as_data(plan, outcomes, ())))
    for engine in data["devices"][0]["engines"]:
        terms = ("weights_bytes", "step_bytes", "graph_bytes", "kv_bytes")
        assert sum(engine[term] for term in terms) == engine["requested_bytes"]
        assert engine["fits"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_of_a_budget_that_is_kept_ends_at_its_mark(width: int) -> None:
    for line in screen(default_config(), "H200", width).splitlines():
        if "│" in line:
            inside, beyond = line.strip().split("│")
            assert "·" not in inside
            assert set(beyond) == {"·"}


def test_a_cache_that_is_too_small_in_a_budget_that_holds_more_is_not_drawn_beyond_it() -> None:
    flags = {**DEFAULT_FLAGS["generation"], "kv_cache_memory_bytes": "100M"}
    (_, bar) = (
        line
        for line in screen(default_config({**DEFAULT_FLAGS, "generation": flags}), "H200", 80).splitlines()
        if "│" in line
    )
    assert set(bar.split("│")[1]) == {"·"}
