"""Flags against the options that vLLM 0.32 and 0.33 have, as recorded in tests/data/options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memoria.errors import Problem
from memoria.vllm.flags import Options, UnknownFlagError, find_problems
from tests.unit.commands import SERVE, spec
from tests.unit.config_files import ConfigFolder, folder
from tests.unit.vllm.serve_lines import recorded

__all__ = ["folder"]

V32, V33 = recorded("0.32.0"), recorded("0.33.0")


def problems(folder: ConfigFolder, args: str) -> tuple[Problem, ...]:
    return find_problems(folder.engine(f"args: {{{args}}}"), V32)


def rendered(args: dict[str, Any], options: Any = V32) -> list[str]:
    argv = spec(args, install=replace(SERVE, options=options)).argv
    return list(argv[argv.index("--disable-uvicorn-access-log") + 1 :])


@pytest.mark.parametrize(
    ("written", "what", "hint"),
    [
        ("swap-space: 4", "vLLM 0.32.0 has no flag `swap_space`", "leave it out"),
        ("enable-reasoning: true", "vLLM 0.32.0 has no flag `enable_reasoning`", "`reasoning-parser`"),
        ("guided-decoding-backend: xgrammar", "has no flag", "`structured-outputs-config: {backend: ...}`"),
        ('rope-scaling: "{}"', "has no flag", "`hf-overrides: {rope_parameters"),
        ("num-scheduler-steps: 8", "has no flag", "`async-scheduling`"),
        ("task: embed", "has no flag", "`runner: pooling`"),
        ("disable-log-requests: true", "has no flag", "leave it out"),
        ("device: cpu", "has no flag", "at the top of the file"),
        ("enable-prefx-caching: true", "has no flag", "did you mean `enable-prefix-caching`?"),
        ("tp: 2", "has no flag `tp`", "did you mean `tensor-parallel-size`?"),
        ("quite-unlike-any: 1", "has no flag", "--help=all"),
        ("max-num: 5", "`max_num` is short for more than one flag of vLLM", "`max-num-batched-tokens`"),
        ("seed.x: 1", "`seed` has no keys in it", "write `seed: 5`"),
        ("limit-mm-per-prompt: image=5", "must be a list, a mapping, or JSON text, not `image=5`", "{"),
        ("lora-modules: {a: /x}", "`lora_modules` must be text, not a mapping", "[NAME=PATH]"),
        ("seed: many", "`seed` must be a whole number, not `many`", "5"),
        ("seed: 1.5", "`seed` must be a whole number, not `1.5`", "5"),
        ("seed: true", "`seed` must be a whole number, not `true`", "5"),
        ("watermark: wet", "`watermark` must be a number, not `wet`", "0.5"),
        ("max-num-scheduled-tokens: 8kb", "must be a whole number, as in 8192 or 8k, not `8kb`", "8k"),
        ("async-scheduling: 5", "`async_scheduling` must be true or false, not `5`", "true"),
        ("chat-template: true", "`chat_template` must be text, not `true`", "TEXT"),
        ("tool-call-parser: [a, b]", "`tool_call_parser` must be text, not a list", "TEXT"),
        ("compilation-config: fast", "`compilation_config` must be a mapping, or JSON text, not `fast`", ""),
        ("compilation-config: [1]", "`compilation_config` must be a mapping, or JSON text, not a list", ""),
        ("tokens-only: maybe", "`tokens_only` must be true or false, not `maybe`", ""),
        ("fingerprint-mode: half", "must be one of custom, full, hash, none, not `half`", "custom"),
        ("cudagraph-capture-sizes: [1, x]", "must be a whole number, not `x`", "[5]"),
        ("max-num-seq: 1, seed: 1, see: 2", "`see` and `seed` are the same flag", "keep one"),
    ],
)  # fmt: skip
def test_what_the_installed_vllm_would_refuse_is_a_problem(
    folder: ConfigFolder, written: str, what: str, hint: str
) -> None:
    (problem,) = problems(folder, written)
    assert what in problem.what
    assert hint in (problem.hint or "")
    assert problem.where[0].startswith("memoria.yaml:2:")


def test_every_wrong_flag_is_reported_at_once_with_its_place(folder: ConfigFolder) -> None:
    found = problems(folder, "swap-space: 4, seed: x, allowed-origins: ['*'], lora-modules: {a: /x}")
    assert [problem.where[0].split("  ")[1] for problem in found] == [
        "a.args.swap_space",
        "a.args.seed",
        "a.args.lora_modules",
    ]


def test_a_key_of_its_own_is_checked_as_the_flag_that_it_is(folder: ConfigFolder) -> None:
    config = folder.engine("dtype: float8, quantization: gguf, max_model_len: auto")
    (problem,) = find_problems(config, V32)
    assert problem.what.startswith("`dtype` must be one of auto, bfloat16,")
    assert problem.where == ("memoria.yaml:2:53  a.dtype",)


@pytest.mark.parametrize(
    "written",
    [
        "max-num-scheduled-tokens: 8k",
        "max-logprobs: -1",
        "max-log-len: None",
        "tensor-parallel-size: 1",
        "moe-backend: FlashInfer-CUTLASS",
        "max-cudagraph: 5",
        'kv-transfer-config: \'{"kv_connector": "X", "bytes": 80m}\'',
        "compilation-config.mode: 3, compilation-config.cudagraph_mode: NONE",
        "hf-overrides: {a: null}, limit-mm-per-prompt: {image: 5}, media-io-kwargs: '{}'",
        "lora-modules: [a=org/x, {name: b, path: org/y}], middleware: acme.X",
        "no-async-scheduling: true, headless: false, log-error-stack: false",
        "mamba-ssu-algorithm: None",
    ],
)
def test_what_vllm_takes_is_no_problem(folder: ConfigFolder, written: str) -> None:
    assert problems(folder, written) == ()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"allowed_origins": ["*"]}, ["--allowed-origins", '["*"]']),
        ({"allowed_methods": []}, ["--allowed-methods", "[]"]),
        ({"middleware": ["a.B", "c.D"]}, ["--middleware", "a.B", "--middleware", "c.D"]),
        ({"middleware": "a.B"}, ["--middleware", "a.B"]),
        ({"cudagraph_capture_sizes": [1, None, 2]}, ["--cudagraph-capture-sizes", "1", "2"]),
        ({"cudagraph_capture_sizes": 4}, ["--cudagraph-capture-sizes", "4"]),
        ({"lora_modules": {"name": "a", "path": "/a"}}, ["--lora-modules", '{"name":"a","path":"/a"}']),
        ({"headless": False, "disable_log_stats": True}, ["--disable-log-stats"]),
        ({"no_async_scheduling": True}, ["--no-async-scheduling"]),
        ({"no_async_scheduling": False}, ["--async-scheduling"]),
        ({"chat_template": "-x", "seed": -1}, ["--chat-template=-x", "--seed=-1"]),
        ({"compilation_config.use_it": True}, ["--compilation-config.use_it=true"]),
        ({"compilation_config.name": "3"}, ['--compilation-config.name="3"']),
        ({"compilation_config.name": "full"}, ["--compilation-config.name=full"]),
        ({"max_cudagraph": 8}, ["--max-cudagraph-capture-size", "8"]),
        ({"quantization": "", "seed": None, "lora_modules": []}, []),
        ({"override_generation_config": {"n": None}}, ["--override-generation-config", '{"n":null}']),
    ],
    ids=str,
)
def test_a_value_is_written_as_the_option_takes_it(args: dict[str, Any], expected: list[str]) -> None:
    assert rendered(args) == expected


def test_a_switch_is_turned_off_by_a_name_that_this_vllm_has() -> None:
    """0.33 shows `--disable-x` for `--enable-x`, and still takes `--no-enable-x`."""
    assert rendered({"enable_prefix_caching": False}) == ["--no-enable-prefix-caching"]
    assert rendered({"disable_prefix_caching": True}, V33)[0] in V33.find("enable_prefix_caching").option.off
    assert rendered({"disable_log_requests": True}, V33)[0] in V33.find("enable_log_requests").option.off


def test_a_default_that_this_vllm_does_not_know_is_left_out() -> None:
    older = replace(SERVE, options=Options({}))
    assert "--disable-uvicorn-access-log" not in spec({}, install=older).argv
    with pytest.raises(UnknownFlagError):
        spec({"seed": 1}, install=older)
