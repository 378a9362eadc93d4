from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from memoria.config.file import find
from memoria.config.load import load
from memoria.config.model import Address
from memoria.errors import ConfigError, ExitCode
from tests.unit.config_files import ENGINE, NO_VARIABLES, ConfigFolder, folder

__all__ = ["folder"]

DEFAULT = Path(__file__).parents[3] / "memoria.yaml"

# As the Docker predecessor's example had it, comments and all.
PREDECESSORS_DOTENV = """\
MODEL_EMBED_NAME=Qwen/Qwen3-Embedding-0.6B
ROUTER_PORT=8300
VLLM_EMBED_URL=http://vllm-embedding:8100
VLLM_EMBED_GPU_MEMORY=0.3  # 30% for embedding
VLLM_GEN_GPU_MEMORY=0.6    # 60% for generation (total ≤0.95)
VLLM_EMBED_MAX_NUM_SEQS=256  # Concurrent sequences (128-512 recommended)
VLLM_EMBED_POOLER_CONFIG='{"pooling_type":"MEAN","normalize":true,"enable_chunked_processing":true,"max_embed_len":8192}'
VLLM_GEN_SCHEDULER_POLICY=fcfs  # fcfs or priority
LOG_LEVEL=info  # DEBUG, INFO, WARNING, ERROR, CRITICAL
LOG_FORMAT=json  # json or text
MAX_LOG_LEN=  # Max chars/tokens to log (blank = unlimited)
HTTP_TIMEOUT=30  # Request timeout (seconds)
"""


def test_the_default_file_has_the_predecessors_defaults(folder: ConfigFolder) -> None:
    config = folder.load(DEFAULT.read_text(encoding="utf-8"))
    assert config.listen == Address("127.0.0.1", 8200)
    assert config.gpu_limit == Decimal("0.95")
    assert (config.timeouts.idle, config.timeouts.health) == (120, 5)
    assert (config.logging.level, config.logging.format) == ("INFO", "text")
    embedding, generation = config.engines
    assert (embedding.name, embedding.runner, embedding.port) == ("embedding", "pooling", 8100)
    assert (generation.name, generation.runner, generation.port) == ("generation", "generate", 8101)
    assert embedding.gpu_memory_utilization == Decimal("0.30")
    assert generation.gpu_memory_utilization == Decimal("0.60")
    assert embedding.vllm_args == {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
    assert generation.vllm_args == {
        "max_num_seqs": 128,
        "max_num_batched_tokens": 16384,
        "max_model_len": 8192,
        "scheduling_policy": "fcfs",
    }
    assert config.warnings == ()


def test_the_predecessors_dotenv_moves_over_unchanged(folder: ConfigFolder) -> None:
    folder.dotenv.write_text(PREDECESSORS_DOTENV, encoding="utf-8")
    config = folder.load(DEFAULT.read_text(encoding="utf-8"))
    embedding, generation = config.engines
    assert config.listen.port == 8300
    assert config.timeouts.idle == 30
    assert (config.logging.level, config.logging.format) == ("INFO", "json")
    assert embedding.gpu_memory_utilization + generation.gpu_memory_utilization == Decimal("0.9")
    assert embedding.vllm_args["pooler_config"] == {
        "pooling_type": "MEAN",
        "use_activation": True,
        "enable_chunked_processing": True,
        "max_embed_len": 8192,
    }
    assert "max_log_len" not in generation.vllm_args
    renamed, overridden = config.warnings
    assert renamed.what == "vLLM renamed `normalize` to `use_activation`"
    assert overridden.what == "`pooling_type` overrides the model's own pooling"


def test_the_environment_sets_what_the_file_leaves_open(folder: ConfigFolder) -> None:
    environ = {**NO_VARIABLES, "ROUTER_HOST": "[::1]", "VLLM_GEN_PORT": "9001", "MAX_LOG_LEN": "80"}
    config = folder.load(DEFAULT.read_text(encoding="utf-8"), environ)
    assert config.listen == Address("::1", 8200)
    assert config.engine("generation").port == 9001
    assert config.engine("generation").vllm_args["max_log_len"] == 80


def test_fractions_are_exact_decimals(folder: ConfigFolder) -> None:
    config = folder.load(
        "engines:\n"
        "  a: {model: org/a, gpu_memory_utilization: 0.40}\n"
        '  b: {model: org/b, gpu_memory_utilization: "${F:-0.55}"}\n'
    )
    assert sum(engine.gpu_memory_utilization for engine in config.engines) == Decimal("0.95")


@pytest.mark.parametrize(
    "fraction", ["0", "-0.1", "1.01", "30", "1e-999999999", "0.0009", "lots", ".nan", ".inf", "[0.3]"]
)
def test_a_fraction_that_is_no_share_is_refused_with_its_line(folder: ConfigFolder, fraction: str) -> None:
    problem = folder.problem(f"engines:\n  a:\n    model: org/a\n    gpu_memory_utilization: {fraction}\n")
    assert problem.what.startswith("`gpu_memory_utilization` must be")
    assert problem.where == ("memoria.yaml:4:5  a.gpu_memory_utilization",)


def test_a_percentage_is_reported_with_how_to_write_it(folder: ConfigFolder) -> None:
    problem = folder.problem("engines: {a: {model: org/a, gpu_memory_utilization: 30}}")
    assert problem.what == "`gpu_memory_utilization` must be at most 1, not `30`"
    assert problem.hint == "it is a share of the whole: 30 % is 0.30"


def test_a_misspelt_key_is_one_problem_with_its_right_spelling(folder: ConfigFolder) -> None:
    problem = folder.problem("engines:\n  a:\n    model: org/a\n    gpu_memory_utilisation: 0.3\n")
    assert str(problem) == (
        "error: unknown key `gpu_memory_utilisation`\n"
        "  memoria.yaml:4:5  a.gpu_memory_utilisation\n"
        "hint: did you mean `gpu_memory_utilization`?"
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("gpu-limit: 0.9", "did you mean `gpu_limit`?"),
        ("timeouts: {drian: 5}", "did you mean `drain`?"),
        ("log: {colour: true}", "known here: level, format, requests, dir, max_mb"),
        ("misspelt:", "known here: "),
    ],
)
def test_an_unknown_key_is_reported_with_the_known_ones(folder: ConfigFolder, key: str, hint: str) -> None:
    problem = folder.problem(f"{key}\nengines: {{a: {{{ENGINE}}}}}\n")
    assert problem.what.startswith("unknown key")
    assert (problem.hint or "").startswith(hint)


def test_an_unknown_flag_of_vllm_is_sent_to_args(folder: ConfigFolder) -> None:
    assert folder.engine_problem("speculative_config: x").hint == "any other flag of vLLM goes under `args`"
    # no hint may lead into the next error
    assert "one GPU" in (folder.engine_problem("tensor_parallel_size: 2").hint or "")
    assert "runner: pooling" in (folder.engine_problem("task: embed").hint or "")


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ("port: many", "`port` must be a whole number, not `many`"),
        ("port: 0", "`port` must be at least 1, not `0`"),
        ("port: 65536", "`port` must be at most 65535, not `65536`"),
        *(
            (
                f"port: {odd}",
                f"`port` must be a whole number in plain digits, as in 8101, not `{odd.strip(chr(39))}`",
            )
            for odd in ("018200", "'018200'", "18_200", "18200.0", "+18200", "' 18200'", "8.2e3")
        ),
        ("want: {weight: 1e-999999999}", "`weight` must be 0, or at least 0.001, not `1e-999999999`"),
        ("runner: embed", "`runner` must be `generate` or `pooling`, not `embed`"),
        ("enforce_eager: perhaps", "`enforce_eager` must be true or false, not `perhaps`"),
        ("max_num_seqs: {a: 1}", "`max_num_seqs` must be a whole number, not a mapping"),
        (
            "max_model_len: 8kb",
            "`max_model_len` must be a number of tokens, as in 8192 or 32k, or `auto`, not `8kb`",
        ),
        (
            "gpu: first",
            "`gpu` must be the index of a GPU, or its UUID as `nvidia-smi -L` prints it, not `first`",
        ),
        ("args: text", "`args` must be a mapping (`key: value` lines), not `text`"),
        ("env: [A, B]", "`env` must be a mapping (`key: value` lines), not a list"),
        ("served_model_name: []", "`served_model_name` must not be empty"),
        ('served_model_name: "a\\e[2J"', "`served_model_name` must not hold control characters"),
        ("pooler_config: not-json", "`pooler_config` must be a mapping (`key: value` lines), not `not-json`"),
        ("transport: tcp", "`transport: tcp` needs a `port`"),
    ],
)
def test_a_wrong_value_is_reported_in_a_sentence(folder: ConfigFolder, keys: str, what: str) -> None:
    problem = folder.engine_problem(keys)
    assert problem.what == what
    assert problem.where[0].startswith("memoria.yaml:2:")


@pytest.mark.parametrize(
    "listen", ["8200", ":8200", "::1:8200", "127.0.0.1:99999", "host:port", "[127.0.0.1"]
)
def test_an_address_that_is_none_is_refused(folder: ConfigFolder, listen: str) -> None:
    problem = folder.problem(f"listen: '{listen}'\nengines: {{a: {{{ENGINE}}}}}\n")
    assert problem.what.startswith("`listen` must be HOST:PORT")


def test_ports_are_unique_among_engines_and_with_the_endpoint(folder: ConfigFolder) -> None:
    first, second = folder.problems(
        "listen: 127.0.0.1:8100\n"
        "engines:\n"
        "  a: {model: org/a, gpu_memory_utilization: 0.1, port: 8100}\n"
        "  b: {model: org/b, gpu_memory_utilization: 0.1, port: 8101}\n"
        "  c: {model: org/c, gpu_memory_utilization: 0.1, port: 8101}\n"
    )
    assert first.what == "port 8100 is taken twice: `a.port` and `listen`"
    assert first.where == ("memoria.yaml:3:50  a.port", "memoria.yaml:1:1  listen")
    assert second.what == "port 8101 is taken twice: `c.port` and `b.port`"


def test_two_engines_of_one_runner_may_not_share_a_model_name(folder: ConfigFolder) -> None:
    problem = folder.problem(
        "engines:\n"
        "  a: {model: org/a, gpu_memory_utilization: 0.1, served_model_name: [x, y]}\n"
        "  b: {model: y, gpu_memory_utilization: 0.1}\n"
        "  c: {model: y, gpu_memory_utilization: 0.1, runner: pooling}\n"
    )
    assert problem.what == "two engines answer to the model name `y`: b and a"
    assert problem.where == ("memoria.yaml:3:7  b.model", "memoria.yaml:2:50  a.served_model_name")


@pytest.mark.parametrize(
    "written",
    ["sql=org/x", "[sql=org/x]", "{name: sql, path: org/x}", """['{"name": "sql", "path": "org/x"}']"""],
)
def test_an_engine_answers_to_its_adapters_names(folder: ConfigFolder, written: str) -> None:
    (engine,) = folder.engine(f"args: {{lora-modules: {written}}}").engines
    assert engine.models == ("org/name", "sql")


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (
            "lora-modules: [x=a/b]",
            "lora-modules: [x=c/d]",
            "two engines answer to the model name `x`: b and a",
        ),
        ("lora-modules: [m/b=a/b]", "", "two engines answer to the model name `m/b`: b and a"),
        ("", "lora-modules: [y=c/d, m/a=c/d]", "two engines answer to the model name `m/a`: b and a"),
        ("lora-modules: [x=a/b, x=c/d]", "", "a has the name `x` twice, for an adapter and for another"),
        ("lora-modules: [m/a=a/b]", "", "a has the name `m/a` twice, for an adapter and for its model"),
    ],
)
def test_no_two_models_or_adapters_share_a_name(
    folder: ConfigFolder, one: str, other: str, what: str
) -> None:
    problem = folder.problem(
        f"engines:\n  a: {{model: m/a, gpu_memory_utilization: 0.1, args: {{{one}}}}}\n"
        f"  b: {{model: m/b, gpu_memory_utilization: 0.1, args: {{{other}}}}}\n"
    )
    assert problem.what == what
    assert problem.hint == "give the adapter another name"


def test_adapters_of_different_runners_may_share_a_name(folder: ConfigFolder) -> None:
    config = folder.load(
        "engines:\n"
        "  a: {model: m/a, gpu_memory_utilization: 0.1, args: {lora-modules: [x=a/b]}}\n"
        "  b: {model: m/b, gpu_memory_utilization: 0.1, runner: pooling, args: {lora-modules: [x=a/b]}}\n"
    )
    assert [engine.models[-1] for engine in config.engines] == ["x", "x"]


def test_all_problems_are_reported_at_once_in_the_order_of_lines(folder: ConfigFolder) -> None:
    problems = folder.problems(
        "listen: nowhere\n"
        "timeouts: {start: soon}\n"
        "engines:\n"
        "  a: {model: ./missing, port: 8100}\n"
        "  B: {model: org/b, gpu_memory_utilization: 2, port: 8100, args: {host: 0.0.0.0}}\n"
    )
    lines = [problem.where[0].split(":")[1] for problem in problems]
    assert lines == sorted(lines)
    assert len(problems) == 8


@pytest.mark.parametrize("text", ["", "# nothing\n", "engines:\n", "gpu: 0\n", "engines: {}\n"])
def test_a_file_without_engines_is_refused(folder: ConfigFolder, text: str) -> None:
    assert "engines" in folder.problem(text).what


def test_an_engine_without_keys_is_reported_with_what_it_needs(folder: ConfigFolder) -> None:
    problems = folder.problems("engines:\n  a:\n")
    assert [problem.what for problem in problems] == [
        "`model` is missing",
        "`gpu_memory_utilization` is missing",
    ]


def test_a_value_that_is_missing_for_want_of_a_variable_names_it(folder: ConfigFolder) -> None:
    problems = folder.problems("engines:\n  a:\n    model: ${MODEL}\n    gpu_memory_utilization: a${SHARE}\n")
    assert [problem.where for problem in problems] == [
        ("memoria.yaml:3:5  a.model", "the variable MODEL is not set"),
        ("memoria.yaml:4:5  a.gpu_memory_utilization", "the variable SHARE is not set"),
    ]


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "utf-16"), ("latin1", "latin1")])
def test_a_file_in_another_encoding_is_told_how_to_convert(
    folder: ConfigFolder, encoding: str, name: str
) -> None:
    folder.file.write_bytes(f"engines:\n  a: {{{ENGINE}}} # für\n".encode(encoding))
    with pytest.raises(ConfigError) as caught:
        load(folder.file, NO_VARIABLES)
    assert f"iconv -f {name} -t utf-8" in (caught.value.problems[0].hint or "")


@pytest.mark.parametrize("name", ["Big", "-a", "a.b", "a b", "a" * 32, "ä"])
def test_an_engines_name_is_plain(folder: ConfigFolder, name: str) -> None:
    problem = folder.problem(f"engines:\n  {name}: {{{ENGINE}}}\n")
    assert problem.what == f"`{name}` is no name for an engine"


def test_a_local_model_is_relative_to_the_file_and_served_by_its_folders_name(folder: ConfigFolder) -> None:
    model = folder.file.parent / "models" / "tiny"
    model.mkdir(parents=True)
    (engine,) = folder.load("engines: {a: {model: ./models/tiny, gpu_memory_utilization: 0.1}}").engines
    assert (engine.model, engine.served_model_name) == (str(model), ("tiny",))


def test_a_local_model_that_is_not_there_is_a_problem(folder: ConfigFolder) -> None:
    problem = folder.problem("engines: {a: {model: ~/models/none, gpu_memory_utilization: 0.1}}")
    assert problem.what == "no model at `~/models/none`"
    assert (problem.hint or "").startswith("that is /home/user/models/none;")


def test_a_hub_model_is_served_by_its_name_unless_others_are_given(folder: ConfigFolder) -> None:
    assert folder.engine("port: 1").engines[0].served_model_name == ("org/name",)
    assert folder.engine("served_model_name: x").engines[0].served_model_name == ("x",)
    assert folder.engine("served_model_name: [x, y, x]").engines[0].served_model_name == ("x", "y")


def test_an_engine_runs_on_the_gpu_at_the_top_unless_it_names_its_own(folder: ConfigFolder) -> None:
    config = folder.load(
        "gpu: GPU-8f2c1e5a-0000-0000-0000-000000000000\n"
        f"engines:\n  a: {{{ENGINE}}}\n  b: {{gpu: 1, model: b, gpu_memory_utilization: 0.1}}\n"
    )
    assert [engine.gpu for engine in config.engines] == ["GPU-8f2c1e5a-0000-0000-0000-000000000000", 1]


def test_blank_keys_are_unset(folder: ConfigFolder) -> None:
    config = folder.load(
        "gpu:\ntimeouts:\nengines:\n  a:\n    model: b\n    gpu_memory_utilization: 0.1\n    args:\n"
    )
    assert config.timeouts.drain == 30
    assert config.engines[0].vllm_args == {}


def test_remote_code_is_warned_of(folder: ConfigFolder) -> None:
    (warning,) = folder.engine("trust_remote_code: true").warnings
    assert warning.what == "a runs code out of the repository of org/name"
    assert folder.engine("trust_remote_code: false").warnings == ()


def test_a_secret_out_of_a_variable_is_not_repeated(folder: ConfigFolder) -> None:
    problem = folder.engine_problem('port: "${HF_TOKEN}"', {"HF_TOKEN": "hf_canary"})
    assert "hf_canary" not in str(problem)


def test_a_place_is_found_for_keys_that_are_not_written(folder: ConfigFolder) -> None:
    config = folder.engine("port: 1")
    assert str(config.where("engines", "a", "port")) == "memoria.yaml:2:53"
    assert str(config.where("engines", "a", "dtype")) == "memoria.yaml:2:3"
    assert str(config.where("gpu_limit")) == "memoria.yaml:1"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"gpu: 0\nlisten: \xff\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name, what in {
        "none.yaml": "no configuration file at",
        ".": "is a folder",
        "latin.yaml": "not UTF-8",
        "loop.yaml": "cannot read",
        "a\0b": "cannot read",
    }.items():
        with pytest.raises(ConfigError, match=what) as caught:
            load(tmp_path / name, {})
        assert caught.value.exit_code is ExitCode.CONFIG


def test_the_flag_comes_before_the_variable_before_the_folder(tmp_path: Path) -> None:
    (tmp_path / "memoria.yaml").touch()
    environ = {"MEMORIA_CONFIG": "named.yaml"}
    assert find(Path("flag.yaml"), environ, tmp_path) == tmp_path / "flag.yaml"
    assert find(None, environ, tmp_path) == tmp_path / "named.yaml"
    assert find(None, {}, tmp_path) == tmp_path / "memoria.yaml"


def test_nothing_found_names_the_places_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memoria.config.file.SYSTEM_FILE", tmp_path / "etc" / "memoria.yaml")
    with pytest.raises(ConfigError) as caught:
        find(None, {}, tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == ("memoria.yaml  not there", "etc/memoria.yaml  not there")


def test_the_hubs_variables_in_dotenv_reach_every_engine(folder: ConfigFolder) -> None:
    folder.dotenv.write_text("HF_TOKEN=of-dotenv\nHF_HOME=/models\nHUGGING_FACE_HUB_TOKEN=x\nOTHER=y\n")
    config = folder.load(
        f"engines:\n  a: {{{ENGINE}}}\n  b: {{{ENGINE}, served_model_name: b, env: {{HF_TOKEN: own}}}}\n",
        {**NO_VARIABLES, "HF_HOME": "/of/the/environment"},
    )
    assert config.engine("a").env == {"HF_TOKEN": "of-dotenv", "HUGGING_FACE_HUB_TOKEN": "x"}
    assert config.engine("b").env == {"HF_TOKEN": "own", "HUGGING_FACE_HUB_TOKEN": "x"}


def test_the_environment_is_the_default_of_the_log(folder: ConfigFolder) -> None:
    folder.dotenv.write_text("LOG_LEVEL=debug\nLOG_FORMAT=\n")
    written = folder.load(
        f"log: {{format: text, level: }}\nengines:\n  a: {{{ENGINE}}}\n",
        {**NO_VARIABLES, "LOG_FORMAT": "json"},
    )
    assert (written.logging.format, written.logging.level) == ("text", "DEBUG")
    unwritten = folder.load(f"engines:\n  a: {{{ENGINE}}}\n", {**NO_VARIABLES, "LOG_FORMAT": "json"})
    assert (unwritten.logging.format, unwritten.logging.level) == ("json", "DEBUG")


@pytest.mark.parametrize("name", ["router", "memoria"])
def test_a_name_that_is_memorias_own_is_no_engines(folder: ConfigFolder, name: str) -> None:
    problem = folder.problem(f"engines:\n  {name}: {{{ENGINE}}}\n")
    assert problem.what.startswith(f"no engine can be named `{name}`: ")
    assert problem.where == (f"memoria.yaml:2:3  {name}",)
