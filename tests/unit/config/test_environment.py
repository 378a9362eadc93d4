from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from memoria.config.environment import looks_secret, read_variables
from memoria.config.interpolate import Variable
from memoria.config.report import Report
from memoria.errors import ConfigError


def read(folder: Path, text: str, environ: Mapping[str, str]) -> dict[str, Variable]:
    (folder / ".env").write_text(text, encoding="utf-8")
    report = Report()
    variables = read_variables(environ, folder / ".env", ".env", report)
    report.raise_errors()
    return variables


def test_inline_comments_are_stripped_and_quotes_removed(tmp_path: Path) -> None:
    variables = read(
        tmp_path,
        "# a comment\n"
        "FRACTION=0.6    # 60% (total ≤0.95)\n"
        'POOLER=\'{"pooling_type":"MEAN","max_embed_len":8192}\'\n'
        'export NAME="two words" # said so\n'
        "COLOR=#fff\n",
        {},
    )
    assert {name: variable.value for name, variable in variables.items()} == {
        "FRACTION": "0.6",
        "POOLER": '{"pooling_type":"MEAN","max_embed_len":8192}',
        "NAME": "two words",
        "COLOR": "#fff",
    }


def test_a_blank_value_is_unset(tmp_path: Path) -> None:
    assert read(tmp_path, "A=\nB=  # Max chars (blank = unlimited)\nC=''\nD\n", {}) == {}


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    variables = read(tmp_path, "\nA=file\nB=file\n", {"A": "environment"})
    assert variables["A"] == Variable("A", "environment", "environment")
    assert variables["B"] == Variable("B", "file", ".env:3")


def test_values_name_other_variables_unless_in_single_quotes(tmp_path: Path) -> None:
    variables = read(tmp_path, "A=one\nB=${A}-${HOME}\nC='${A}'\nD=\"${MISSING:-two}\"\n", {"HOME": "/home"})
    assert [variables[name].value for name in "BCD"] == ["one-/home", "${A}", "two"]


def test_a_line_that_assigns_nothing_is_a_problem_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "A=1\n\nwhat is this\nB=${A\n", {})
    assert [problem.where for problem in caught.value.problems] == [(".env:3",), (".env:4",)]


def test_a_file_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    report = Report()
    assert read_variables({}, tmp_path / ".env", ".env", report) == {}
    with pytest.raises(ConfigError, match="not UTF-8"):
        report.raise_errors()


def test_a_missing_file_and_a_folder_of_that_name_are_fine(tmp_path: Path) -> None:
    report = Report()
    (tmp_path / ".env").mkdir()
    assert read_variables({}, tmp_path / ".env", ".env", report) == {}
    assert read_variables({}, tmp_path / "none", ".env", report) == {}
    report.raise_errors()


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "db_password", "AWS_SECRET_ACCESS_KEY", "TOKEN"]
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["VLLM_EMBED_MAX_BATCHED_TOKENS", "TOKENIZERS_PARALLELISM", "HF_HOME"])
def test_a_tuning_knob_is_no_secret(name: str) -> None:
    assert not looks_secret(name)
