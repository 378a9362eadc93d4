from __future__ import annotations

import pytest

from memoria.config.schema import VLLM_KEYS
from memoria.config.vllm_flags import REFUSED_FLAGS
from tests.unit.config_files import ENGINE, ConfigFolder, folder

__all__ = ["folder"]


@pytest.mark.parametrize("written", ["--max-num-seqs", "max-num-seqs", "max_num_seqs"])
def test_a_flag_is_one_however_it_is_written(folder: ConfigFolder, written: str) -> None:
    (engine,) = folder.engine(f"args: {{{written}: 7}}").engines
    assert engine.vllm_args == {"max_num_seqs": 7}


def test_a_flag_with_a_key_of_its_own_is_checked_as_that_key(folder: ConfigFolder) -> None:
    problem = folder.engine_problem("args: {max-num-seqs: many}")
    assert problem.what == "`max_num_seqs` must be a whole number, not `many`"
    assert problem.where == ("memoria.yaml:2:60  a.max_num_seqs",)


@pytest.mark.parametrize("keys", ["max_num_seqs: 5, args: {max-num-seqs: 6}", "args: {--seed: 1, seed: 2}"])
def test_a_flag_given_twice_is_refused(folder: ConfigFolder, keys: str) -> None:
    problem = folder.engine_problem(keys)
    assert problem.what.endswith("is given twice")
    assert len(problem.where) == 2


def test_other_flags_keep_the_types_that_yaml_gives_them(folder: ConfigFolder) -> None:
    (engine,) = folder.engine(
        "args: {enable-prefix-caching: true, seed: 0, watermark: 0.5, hf_overrides: {rope: {factor: 2}}, "
        'ids: [1, x], no-async-scheduling: true, size: "5", unset: , max-log-len: "${N:-3}"}'
    ).engines
    assert engine.vllm_args == {
        "enable_prefix_caching": True,
        "seed": 0,
        "watermark": 0.5,
        "hf_overrides": {"rope": {"factor": 2}},
        "ids": [1, "x"],
        "no_async_scheduling": True,
        "size": "5",
        "max_log_len": 3,
    }


def test_a_null_within_a_flag_or_a_filter_is_a_value_and_a_flag_without_one_is_unset(
    folder: ConfigFolder,
) -> None:
    (engine,) = folder.engine(
        "args: {override_generation_config: {max_new_tokens: null}, hf-overrides: {layers: [1, null, ~]}, "
        "deep: {a: [{b: }]}, seed: , size: null}, filters: {set: {stop: null, kwargs: {n: }}}, "
        "pooler_config: {dimensions: null}"
    ).engines
    assert engine.vllm_args == {
        "override_generation_config": {"max_new_tokens": None},
        "hf_overrides": {"layers": [1, None, None]},
        "deep": {"a": [{"b": None}]},
        "pooler_config": {"dimensions": None},
    }
    assert engine.filters.set == {"stop": None, "kwargs": {"n": None}}


def test_a_blank_item_of_a_list_of_memorias_own_is_unset(folder: ConfigFolder) -> None:
    config = folder.engine('served_model_name: [x, "${OTHER:-}"]')
    assert config.engines[0].served_model_name == ("x",)


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("model", "`model`"),
        ("--runner", "`runner`"),
        ("served-model-name", "`served_model_name`"),
        ("gpu-memory-utilization", "`gpu_memory_utilization`"),
        ("trust-remote-code", "`trust_remote_code`"),
        ("host", "`listen`"),
        ("port", "`port`"),
        ("uds", "`listen`"),
        ("ssl-keyfile", "`listen`"),
        ("root-path", "`listen`"),
        ("config", "`args`"),
        ("api-key", "no key"),
        ("hf-token", "HF_TOKEN"),
        ("data-parallel-size-local", "one GPU"),
        ("tensor-parallel-size", "one GPU"),
        ("headless", "one GPU"),
        ("enable-request-id-headers", "always"),
        ("no-enable-request-id-headers", "always"),
        ("uvicorn-log-level", "log"),
        ("hos", "`listen`"),
        ("gpu-mem", "`gpu_memory_utilization`"),
        ("model.x", "`model`"),
    ],
)
def test_a_flag_that_is_memorias_own_is_refused_with_its_place(
    folder: ConfigFolder, flag: str, hint: str
) -> None:
    problem = folder.engine_problem(f"args: {{{flag}: canary}}")
    assert problem.what == f"`{flag}` is not for `args`"
    assert hint in (problem.hint or "")
    assert problem.where == (f"memoria.yaml:2:60  a.args.{flag}",)
    assert "canary" not in str(problem)


def test_only_the_key_that_must_stand_alone_is_refused_among_the_keys_of_an_engine() -> None:
    assert {key for key in VLLM_KEYS if any(refused.startswith(key) for refused in REFUSED_FLAGS)} == {
        "trust_remote_code"
    }


@pytest.mark.parametrize("flag", ["task", "device", "disable_log_requests", "swap_space"])
def test_a_flag_that_vllm_dropped_is_left_to_the_installed_one(folder: ConfigFolder, flag: str) -> None:
    """An older vLLM, or a later one, has it (`memoria.vllm.flags`)."""
    assert folder.engine(f"args: {{{flag}: x}}").engines[0].vllm_args == {flag: "x"}


@pytest.mark.parametrize("flag", ["host=0.0.0.0 --x", "-tp", "a b", "1x"])
def test_what_is_no_flag_is_refused(folder: ConfigFolder, flag: str) -> None:
    assert folder.engine_problem(f'args: {{"{flag}": 1}}').what == f"`{flag}` is not the name of a vLLM flag"


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ("served_model_name: [m, --trust-remote-code]", "2:76  a.served_model_name.1"),
        ("served_model_name: --port", "2:53  a.served_model_name.0"),
        ('served_model_name: "${NAME}"', "2:53  a.served_model_name.0"),
        *(
            (f"{key}: --port", f"2:53  a.{key}")
            for key in ("dtype", "quantization", "kv_cache_dtype", "convert")
        ),
    ],
)
def test_no_flag_gets_onto_the_command_line_as_a_value(folder: ConfigFolder, keys: str, where: str) -> None:
    text = f"engines:\n  a: {{{ENGINE}, {keys}}}\n"
    problem = folder.problem(text, {"NAME": "--enable-lora"})
    assert "must be text that does not begin with `-`" in problem.what
    assert problem.where[0] == f"memoria.yaml:{where}"


def test_neither_a_model_nor_its_folders_name_is_taken_for_a_flag(folder: ConfigFolder) -> None:
    problem = folder.problem('engines: {a: {model: "${M}", gpu_memory_utilization: 0.5}}', {"M": "--port"})
    assert (
        problem.what
        == "`model` must be text that does not begin with `-`, as a flag of vLLM's does, not `--port`"
    )
    assert problem.where == ("memoria.yaml:1:15  a.model", "from M in the environment")
    (folder.file.parent / "--port/x").mkdir(parents=True)
    text = "engines: {a: {model: ./--port/x/.., gpu_memory_utilization: 0.5}}"
    problem = folder.problem(text)
    assert problem.what == "its folder's name would be the model's, and begins with `-`: `--port`"
    assert folder.load(text.replace("0.5", "0.5, served_model_name: m")).engines[0].served_model_name == (
        "m",
    )


@pytest.mark.parametrize("value", ["[a, --host]", "[-0.5]", "[-tp]"])
def test_an_item_that_looks_like_a_flag_is_refused(folder: ConfigFolder, value: str) -> None:
    problem = folder.engine_problem(f"args: {{middleware: {value}}}")
    assert problem.what == "vLLM would take an item of this list for a flag"


@pytest.mark.parametrize(
    ("written", "value"),
    [("-1", -1), ("-0.5", -0.5), ('"-1"', "-1"), ("[-1, 5]", [-1, 5]), ("--host=0.0.0.0", "--host=0.0.0.0")],
)
def test_a_value_may_begin_with_a_minus(folder: ConfigFolder, written: str, value: object) -> None:
    assert folder.engine(f"args: {{flag: {written}}}").engines[0].vllm_args == {"flag": value}


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("32k", 32_000),
        ("32K", 32_768),
        ("25.6k", 25_600),
        ("1m", 1_000_000),
        ("8192", 8192),
        ('"2M"', 2 << 20),
    ],
)
@pytest.mark.parametrize("key", ["max_model_len", "max_num_batched_tokens", "kv_cache_memory_bytes"])
def test_a_number_may_have_vllms_suffix(folder: ConfigFolder, key: str, written: str, tokens: int) -> None:
    assert folder.engine(f"{key}: {written}").engines[0].vllm_args == {key: tokens}
    assert folder.engine(f"args: {{{key}: {written}}}").engines[0].vllm_args == {key: tokens}


@pytest.mark.parametrize("written", ["-1", "auto", '"-1"'])
def test_the_context_length_may_be_left_to_vllm(folder: ConfigFolder, written: str) -> None:
    assert folder.engine(f"max_model_len: {written}").engines[0].vllm_args == {"max_model_len": "auto"}


@pytest.mark.parametrize("written", ["1.5K", "32kb", "k", "0k", "-1k", "1e3", "9999999T"])
def test_a_number_with_another_suffix_is_refused(folder: ConfigFolder, written: str) -> None:
    assert "must be" in folder.engine_problem(f"max_model_len: {written}").what


@pytest.mark.parametrize(
    ("flag", "value"),
    [("tensor-parallel-size", 1), ("data-parallel-size", 1), ("node-rank", 0), ("headless", False)],
)
def test_a_refused_flag_may_say_what_is_so_anyway(folder: ConfigFolder, flag: str, value: object) -> None:
    written = str(value).lower()
    (engine,) = folder.engine(f"args: {{{flag}: {written}}}").engines
    assert engine.vllm_args == {flag.replace("-", "_"): value}
    assert "one GPU" in (folder.engine_problem(f"args: {{{flag}: 2}}").hint or "")


def test_variables_are_text(folder: ConfigFolder) -> None:
    (engine,) = folder.engine('env: {A: 0, B: true, C: 1.10, D: , E: "", F: "${X:-}"}').engines
    assert engine.env == {"A": "0", "B": "true", "C": "1.10", "E": ""}


@pytest.mark.parametrize(
    "name",
    ["MEMORIA_GATE", "CUDA_VISIBLE_DEVICES", "VLLM_API_KEY", "NOTIFY_SOCKET", "LISTEN_FDS", "A-B", "1A"],
)
def test_a_variable_that_is_not_the_engines_is_refused(folder: ConfigFolder, name: str) -> None:
    problem = folder.engine_problem(f"env: {{{name}: canary}}")
    assert f"`{name}` is not" in problem.what
    assert "canary" not in str(problem)


def test_a_pooler_is_a_mapping_or_json(folder: ConfigFolder) -> None:
    for written in (
        "{use_activation: true, dimensions: 64}",
        '\'{"use_activation": true, "dimensions": 64}\'',
    ):
        config = folder.engine(f"pooler_config: {written}")
        assert config.engines[0].vllm_args["pooler_config"] == {"use_activation": True, "dimensions": 64}
        assert config.warnings == ()


def test_a_renamed_pooler_key_in_the_file_is_refused(folder: ConfigFolder) -> None:
    problem = folder.engine_problem("pooler_config: {normalize: true}")
    assert problem.what == "vLLM renamed `normalize` to `use_activation`"
    assert problem.where == ("memoria.yaml:2:69  a.pooler_config.normalize",)


def test_another_pooling_than_the_models_own_is_warned_of(folder: ConfigFolder) -> None:
    (warning,) = folder.engine("pooler_config: {pooling_type: MEAN}").warnings
    assert warning.what == "`pooling_type` overrides the model's own pooling"
