"""Fractions out of sizes and wishes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoria.config.file import rewrite
from memoria.config.model import Config, Want
from memoria.errors import ConfigError, Problem
from memoria.gpu.device import Device
from memoria.plan.budgets import exact_fraction
from memoria.plan.checkpoint import ModelFiles
from memoria.plan.outcome import make_outcome
from memoria.plan.plan import make_plan
from memoria.plan.wishes import Settled, room_for, settle, wanted_cache_bytes, wish_problem
from memoria.text import GIB
from tests.unit import checkpoints as models
from tests.unit.checkpoints import model_files
from tests.unit.config_files import ConfigFolder, folder
from tests.unit.plans import config, gpu

__all__ = ["folder"]  # a fixture

FILES: Mapping[str, ModelFiles] = {
    "a": model_files(models.QWEN3_EMBEDDING),
    "b": model_files(models.LLAMA_8B),
    "c": model_files(models.GEMMA3_1B),
}
wishes = st.builds(
    Want,
    context=st.none() | st.integers(16, 8192),
    concurrency=st.none() | st.floats(0.1, 200),
    tokens=st.none() | st.integers(1, 500_000),
    weight=st.none() | st.decimals(0, 10, places=1),
)
totals = st.integers(8 * GIB, 200 * GIB)


def wishing(
    wants: Mapping[str, Want | None], limit: str = "0.95", fixed: Mapping[str, str] | None = None
) -> Config:
    made = config({**dict.fromkeys(wants, "0"), **(fixed or {})}, limit=limit)
    args = {"max_num_seqs": 64, "max_model_len": 8192}
    engines = (replace(e, want=wants.get(e.name), vllm_args=args) for e in made.engines)
    return replace(made, engines=tuple(engines))


def device(total: int) -> Device:
    return gpu(total=total, reserved=0)


def chosen(settled: Settled) -> dict[str, Decimal]:
    return {choice.engine: choice.fraction for choice in settled.choices}


@given(st.integers(GIB, 300 * GIB), st.floats(0.001, 1))
def test_a_size_comes_back_from_vllms_own_rounding_to_the_byte(total: int, share: float) -> None:
    size = max(1, int(total * share))
    fraction = exact_fraction(total, size)
    assert math.ceil(total * float(format(fraction, "f"))) == size


@given(totals, wishes, wishes, st.sampled_from(["0.5", "0.9", "0.95", "1"]))
def test_choices_never_exceed_the_limit_or_the_device(
    total: int, first: Want, second: Want, limit: str
) -> None:
    wanted = wishing({"a": first, "b": second}, limit)
    settled = settle(wanted, {0: device(total)}, FILES)
    if settled.problems:
        return
    assert sum(chosen(settled).values()) <= room_for(wanted, device(total), 2) <= Decimal(limit)
    assert make_plan(settled.config, {0: device(total)}).problems == ()


@given(totals, wishes, wishes)
def test_a_choice_grants_every_wish(total: int, first: Want, second: Want) -> None:
    settled = settle(wishing({"a": first, "b": second}), {0: device(total)}, FILES)
    if settled.problems:
        return
    plan = make_plan(settled.config, {0: device(total)})
    for engine in settled.config.engines:
        outcome = make_outcome(engine, plan.budget(engine.name), FILES[engine.name], device(total))
        assert outcome.fits
        assert wish_problem(settled.config, outcome) is None
        assert outcome.kv_bytes >= wanted_cache_bytes(outcome.kv_cache, engine.want or Want())


@given(totals, wishes, wishes, st.floats(1, 4), st.integers(0, 100_000))
def test_a_larger_wish_never_gets_less(total: int, wish: Want, other: Want, times: float, more: int) -> None:
    larger = replace(
        wish, concurrency=(wish.concurrency or 1.0) * times, tokens=(wish.tokens or 0) + more + 1
    )
    # A share is what others leave: it may fall as wishes grow, so it is left out here.
    before = settle(
        wishing({"a": replace(wish, weight=None), "b": replace(other, weight=None)}),
        {0: device(total)},
        FILES,
    )
    after = settle(
        wishing({"a": replace(larger, weight=None), "b": replace(other, weight=None)}),
        {0: device(total)},
        FILES,
    )
    if after.problems:
        return
    assert not before.problems
    assert chosen(after)["a"] >= chosen(before)["a"]
    assert chosen(after)["b"] == chosen(before)["b"]


@settings(max_examples=30)
@given(totals, wishes, wishes)
def test_the_same_wishes_get_the_same_choice(total: int, first: Want, second: Want) -> None:
    wanted = wishing({"a": first, "b": second})
    assert settle(wanted, {0: device(total)}, FILES) == settle(wanted, {0: device(total)}, dict(FILES))


def test_engines_without_wishes_share_alike_and_weights_count() -> None:
    alike = chosen(settle(wishing({"a": None, "c": None}), {0: device(80 * GIB)}, FILES))
    assert abs(alike["a"] - alike["c"]) < Decimal("0.1")
    weighed = settle(
        wishing({"a": Want(weight=Decimal(1)), "c": Want(weight=Decimal(3))}), {0: device(80 * GIB)}, FILES
    )
    assert chosen(weighed)["c"] > 2 * chosen(weighed)["a"]
    assert Decimal("0.93") <= sum(chosen(weighed).values()) <= Decimal("0.95")


def test_a_wish_beside_a_fixed_fraction_takes_only_what_is_left() -> None:
    wanted = wishing({"a": Want(weight=Decimal(1))}, fixed={"b": "0.6"})
    assert chosen(settle(wanted, {0: device(80 * GIB)}, FILES)) == {"a": Decimal("0.35")}


def test_wishes_that_cannot_be_granted_are_reported_with_what_is_missing() -> None:
    wanted = wishing({"a": Want(context=8192, concurrency=16), "b": Want(context=8192, concurrency=60)})
    (problem,) = settle(wanted, {0: device(80 * GIB)}, FILES).problems
    assert "the wishes need 1.2" in problem.what or "the wishes need 1.1" in problem.what
    assert "there is room for 0.95" in problem.what
    assert any("60 requests of 8 192 tokens" in line for line in problem.where)
    assert "GiB less in all" in (problem.hint or "")
    (problem,) = settle(wanted, {0: device(24 * GIB)}, FILES).problems
    assert "needs" in problem.what
    assert "in all" in problem.what


def test_a_wish_without_the_models_files_is_a_problem() -> None:
    (problem,) = settle(wishing({"x": Want(concurrency=1)}), {0: device(24 * GIB)}, FILES).problems
    assert "no fraction can be chosen for x" in problem.what


def test_a_written_fraction_that_does_not_grant_its_wish_is_a_problem() -> None:
    wanted = wishing({"b": Want(context=8192, concurrency=32)})
    wanted = replace(
        wanted, engines=tuple(replace(e, gpu_memory_utilization=Decimal("0.5")) for e in wanted.engines)
    )
    plan = make_plan(wanted, {0: device(40 * GIB)})
    outcome = make_outcome(wanted.engines[0], plan.budget("b"), FILES["b"], device(40 * GIB))
    problem = wish_problem(wanted, outcome)
    assert problem is not None
    assert "b wants 32 requests of 8 192 tokens" in problem.what


def test_the_file_says_sizes_and_wishes(folder: ConfigFolder) -> None:
    read = folder.load("engines:\n  a: {model: o/n, gpu_memory: 12GiB}\n")
    assert read.engine("a").gpu_memory == 12 * GIB
    assert not read.engine("a").is_auto
    wish = "want: {context: 8192, concurrency: 16}"
    read = folder.load(f"engines:\n  a: {{model: o/n, gpu_memory_utilization: auto, {wish}}}\n")
    assert read.engine("a").want == Want(8192, 16.0)
    assert read.engine("a").is_auto
    assert read.engine("a").vllm_args["max_model_len"] == 8192


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("gpu_memory: 12", "must be a size with its unit"),
        ("gpu_memory: 12GiB, gpu_memory_utilization: 0.3", "exclude each other"),
        ("gpu_memory_utilization: much", "must be a number, or `auto`"),
        ("gpu_memory_utilization: auto, want: {concurrency: 0}", "must be more than 0"),
        ("gpu_memory_utilization: auto, want: {contest: 8}", "unknown key `contest`"),
        ("want: {tokens: 8}", "`gpu_memory_utilization` is missing"),
    ],
)
def test_bad_sizes_and_wishes_are_refused(folder: ConfigFolder, keys: str, said: str) -> None:
    assert said in folder.problem(f"engines:\n  a: {{model: o/n, {keys}}}\n").what


def test_fractions_are_written_into_the_file_and_nothing_else_changes(tmp_path: Path) -> None:
    file = tmp_path / "memoria.yaml"
    text = (
        "# mine\r\nengines:\n"
        "  a: {gpu_memory_utilization: auto, model: x}  # flow\n"
        "  b:\n    gpu_memory_utilization:   'auto'   # why\n    model: y\n"
    )
    file.write_bytes(text.encode())
    file.chmod(0o640)
    key = "gpu_memory_utilization"
    rewrite(file, {("engines", "a", key): "0.30", ("engines", "b", key): "0.60"})
    assert file.read_bytes().decode() == text.replace("'auto'", "0.60").replace("auto", "0.30")
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("value", ["${FRACTION:-auto}", None])
def test_a_fraction_that_stands_elsewhere_is_not_written(tmp_path: Path, value: str | None) -> None:
    file = tmp_path / "memoria.yaml"
    file.write_text(f"engines:\n  a:\n    gpu_memory_utilization: {value}\n" if value else "engines: {}\n")
    with pytest.raises(ConfigError, match=r"variable|does not stand"):
        rewrite(file, {("engines", "a", "gpu_memory_utilization"): "0.30"})


def test_every_wish_that_cannot_be_granted_is_reported_at_once() -> None:
    wanted = wishing({"a": None, "b": Want(concurrency=1), "c": None})
    sized = replace(wanted.engine("c"), gpu_memory=900 * GIB)
    wanted = replace(wanted, engines=(wanted.engine("a"), wanted.engine("b"), sized))
    reason = Problem("the weights cannot be read", (), "download the model again")
    found = settle(wanted, {0: device(24 * GIB)}, {"a": FILES["a"]}, {"b": reason})
    assert [problem.what for problem in found.problems] == [
        "no fraction can be chosen for b: the weights cannot be read",
        "c asks for 900.0 GiB, gpu 0 has 24.0 GiB in all",
    ]
    assert found.problems[0].hint == "download the model again; or write a fraction"
    assert found.choices == ()
