"""What is certain of a model in its budget, what is likely, and what the neighbours may give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from memoria.config.model import Config, Want
from memoria.gpu.device import Device
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.outcome import Learned
from memoria.plan.plan import make_plan
from memoria.plan.problems import Misfits, find_misfits, plan_problems
from memoria.preflight.outcomes import make_outcomes
from memoria.text import GIB
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files, with_headers
from tests.unit.plans import config, gpu, host

GPU = gpu(total=24 * GIB, reserved=0)
LLAMA = with_headers(models.LLAMA_8B)  # 15.0 GiB
SMALL: Mapping[str, Any] = {"max_model_len": 4096, "max_num_seqs": 16}


def judged(
    files: ModelFiles,
    fraction: str = "0.5",
    device: Device = GPU,
    learned: Learned | None = None,
    **args: Any,
) -> Misfits:
    wanted = config({"a": fraction}, vllm_args={**SMALL, **args}, device="cpu" if device.is_host else "cuda")
    plan = make_plan(wanted, {0: device})
    return find_misfits(
        wanted, plan, make_outcomes(wanted, plan, {"a": files}, {}, {"a": learned} if learned else {})
    )


def test_weights_that_are_more_than_the_budget_are_certain() -> None:
    found = judged(LLAMA)
    (problem,) = found.certain
    assert found.likely == ()
    assert problem.what == "the weights of a alone are 15.0 GiB, its budget is 12.0 GiB"
    assert problem.where == ("memoria.yaml:12",)
    assert (problem.hint or "").startswith("raise gpu_memory_utilization to 0.")


def test_weights_that_just_fit_are_no_certainty() -> None:
    """One step's peak, which is an estimate, is what stands against it."""
    found = judged(LLAMA, "0.63")
    assert found.certain == ()
    (problem,) = found.likely
    assert "before its KV cache" in problem.what


VISION = {"model_type": "qwen2_5_vl", "text_config": models.LLAMA_8B, "vision_config": {}}
MIGHT_START: Mapping[str, tuple[ModelFiles, Mapping[str, Any]]] = {
    "without its files": (model_files(models.LLAMA_8B), {}),
    "a kind that was not compared": (with_headers({**models.LLAMA_8B, "model_type": "new_one"}), {}),
    "offloaded weights": (LLAMA, {"cpu_offload_gb": 8}),
    "divided weights": (LLAMA, {"tensor_parallel_size": 2, "cpu_offload_gb": 0}),
    "layers elsewhere": (LLAMA, {"pipeline_parallel_size": 2}),
    "quantised while loading": (
        with_headers({**models.LLAMA_8B, "num_hidden_layers": 96}),
        {"quantization": "fp8"},
    ),
    "another loader": (LLAMA, {"load_format": "tensorizer"}),
    "an encoder": (with_headers({**models.BGE_BASE, "num_hidden_layers": 1200}), {"max_model_len": 512}),
    "a tower that may be left out": (replace(LLAMA, config=VISION), {}),
}


@pytest.mark.parametrize("name", MIGHT_START)
def test_what_vllm_might_start_is_never_certain(name: str) -> None:
    files, args = MIGHT_START[name]
    found = judged(files, "0.25", **args)
    assert found.certain == ()
    assert found.likely


def test_a_kv_cache_that_is_given_is_taken_whatever_the_fraction_is() -> None:
    found = judged(LLAMA, "0.5", kv_cache_memory_bytes="1G")
    assert found.certain == ()
    assert found.likely


def test_a_host_is_not_certain_and_neither_is_what_was_learnt() -> None:
    assert judged(LLAMA, "0.5", host(total=24 * GIB)).certain == ()
    assert judged(LLAMA, "0.5", learned=Learned(weights_bytes=GIB)) == Misfits((), ())


def two(first: str, second: str, **more: Any) -> tuple[Config, tuple[str, ...]]:
    """Two engines on 24 GiB, and the hints for the second."""
    wanted = config({"embedding": first, "generation": second}, vllm_args=SMALL)
    engines = (replace(wanted.engine("embedding"), **more), wanted.engine("generation"))
    return (made := replace(wanted, engines=engines)), hints(made)


def hints(wanted: Config) -> tuple[str, ...]:
    plan = make_plan(wanted, {0: GPU})
    files = {
        "embedding": with_headers(models.QWEN3_EMBEDDING),
        "generation": with_headers(models.QWEN3_4B_FP8),
    }
    problems = plan_problems(wanted, plan, make_outcomes(wanted, plan, files, {}))
    return tuple(problem.hint or "" for problem in problems)


def test_a_neighbour_with_something_to_spare_may_give_it() -> None:
    wanted, (hint,) = two("0.74", "0.20")
    first = hint.split(", or ")[0]
    given = dict(re.findall(r"of (\w+)[^.]*? to (\d\.\d+)", first))
    assert set(given) == {"embedding", "generation"}
    assert sum(map(Decimal, given.values())) == Decimal("0.94")  # no more is moved than what is missing
    moved = tuple(
        replace(engine, gpu_memory_utilization=Decimal(given[engine.name])) for engine in wanted.engines
    )
    assert hints(replace(wanted, engines=moved)) == ()
    assert hints(wanted) == (hint,)


def test_a_neighbour_gives_nothing_where_there_is_room_or_it_needs_all_it_has() -> None:
    for first, more in (
        ("0.60", {}),  # what is missing is free
        ("0.74", {"want": Want(context=4096, concurrency=37.0)}),
        ("0.74", {"gpu_memory": 18 * GIB}),
    ):
        _, found = two(first, "0.20", **more)
        assert found
        assert not any("embedding" in hint for hint in found)
