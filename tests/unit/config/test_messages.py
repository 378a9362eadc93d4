"""What is said of a wrong value: where it comes from, what the key means, and all else that is wrong."""

from __future__ import annotations

import pytest

from memoria.config.load import WrongValuesError
from memoria.errors import ConfigError
from tests.unit.config_files import ENGINE, NO_VARIABLES, ConfigFolder, folder

__all__ = ["folder"]


def test_beside_a_wrong_value_all_else_is_reported_that_does_not_depend_on_it(folder: ConfigFolder) -> None:
    text = (
        "listen: 0.0.0.0:8200\nguard: {protect: b}\n"
        f"engines:\n  a: {{{ENGINE}, port: high}}\n  b: {{gpu_memory_utilization: 0.5, sed: 7}}\n"
    )
    with pytest.raises(WrongValuesError) as caught:
        folder.load(text)
    assert [problem.what.partition(",")[0] for problem in caught.value.problems] == [
        "0.0.0.0:8200 can be reached from other machines",
        "`guard` needs both its keys",
        "`port` must be a whole number",
        "`model` is missing",
        "unknown key `sed`",
    ]
    assert [str(engine.gpu_memory_utilization) for engine in caught.value.usable.engines] == ["0.5", "0.5"]


@pytest.mark.parametrize("wrong", ["keys: {}", "key: ./keys", "open_to_network: perhaps"])
def test_what_a_wrong_value_may_have_said_is_not_missed(folder: ConfigFolder, wrong: str) -> None:
    (problem,) = folder.problems(f"listen: 0.0.0.0:8200\n{wrong}\nengines:\n  a: {{{ENGINE}}}\n")
    assert "other machines" not in problem.what


@pytest.mark.parametrize("wrong", ["gpu: first", "gpu_limit: all", "device: tpu"])
def test_where_the_devices_are_not_known_the_fractions_cannot_be_judged(
    folder: ConfigFolder, wrong: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        folder.load(f"{wrong}\nengines:\n  a: {{{ENGINE}}}\n")
    assert not isinstance(caught.value, WrongValuesError)


def test_a_wrong_value_is_traced_to_the_variable_that_it_comes_from(folder: ConfigFolder) -> None:
    folder.dotenv.write_text("# tuned\nIDLE=-3\nSEQS=many\n")
    problems = folder.problems(
        "timeouts: {idle: '${IDLE}', health: '${HEALTH:-5}'}\n"
        f"engines:\n  a: {{{ENGINE}, args: {{max-num-seqs: '${{SEQS}}'}}}}\n",
        {**NO_VARIABLES, "HEALTH": "0", "LOG_LEVEL": "loud"},
    )
    assert [problem.where for problem in problems] == [
        ("memoria.yaml:1  log.level", "from LOG_LEVEL in the environment"),
        ("memoria.yaml:1:12  timeouts.idle", "from IDLE in .env:2"),
        ("memoria.yaml:1:29  timeouts.health", "from HEALTH in the environment"),
        ("memoria.yaml:3:60  a.max_num_seqs", "from SEQS in .env:3"),
    ]


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("port: high", "a port of its own, answered by memoria for this engine alone"),
        ("runner: embed", "embedding, reranking and classifying is `pooling`, writing text is `generate`"),
        ("want: 5", "its keys: context, concurrency, tokens, weight"),
        ("env: {A: [1]}", "environment variables for this engine alone"),
    ],
)
def test_a_wrong_value_is_reported_with_what_the_key_means(
    folder: ConfigFolder, keys: str, hint: str
) -> None:
    assert folder.engine_problem(keys).hint == hint


def test_the_meaning_of_a_key_ends_with_its_default(folder: ConfigFolder) -> None:
    text = f"engines:\n  a: {{{ENGINE}}}\n"
    assert (folder.problem(f"device: tpu\n{text}").hint or "").endswith(" (if left out: cuda)")
    assert (folder.problem(f"timeouts: {{stop: 0}}\n{text}").hint or "").endswith(" (if left out: 15)")


@pytest.mark.parametrize("fraction", ["0", "-0.3", "1.5"])
def test_a_fraction_that_is_none_is_explained(folder: ConfigFolder, fraction: str) -> None:
    text = f"engines:\n  a: {{model: org/name, gpu_memory_utilization: {fraction}}}\n"
    assert folder.problem(text).hint == "it is a share of the whole: 30 % is 0.30"


def test_an_engine_that_is_there_twice_is_reported_with_advice(folder: ConfigFolder) -> None:
    problem = folder.problem(f"engines:\n  a: {{{ENGINE}}}\n  a: {{{ENGINE}}}\n")
    assert problem.where == ("memoria.yaml:3:3  a", "memoria.yaml:2:3  a")
    assert problem.hint == "remove one of them, or give it another name"
