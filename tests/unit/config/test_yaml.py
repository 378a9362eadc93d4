from __future__ import annotations

import pytest

from memoria.config.interpolate import Variable
from memoria.config.report import Report
from memoria.config.values import plain
from memoria.config.yaml import Document, Scalar, parse
from memoria.errors import ConfigError, Mark


def read(text: str, **variables: str) -> Document:
    report = Report()
    known = {name: Variable(name, value, "environment") for name, value in variables.items()}
    document = parse(text, "memoria.yaml", known, report)
    report.raise_errors()
    return document


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def test_every_key_and_list_item_has_its_place() -> None:
    marks = read("a:\n  b: 1\n  c: [x, y]\n").marks
    assert marks[("a",)] == Mark("memoria.yaml", 1, 1)
    assert marks[("a", "b")] == Mark("memoria.yaml", 2, 3)
    assert marks[("a", "c", "1")] == Mark("memoria.yaml", 3, 10)


def test_a_value_keeps_its_text_beside_its_type() -> None:
    number = read("fraction: 0.30").get("fraction")
    assert isinstance(number, Scalar)
    assert (number, number.value) == ("0.30", 0.3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${P:-8100}", 8100),
        ('"${P:-8100}"', 8100),
        ("${P:-0.5}", 0.5),
        ("${P:-true}", True),
        ("8100", 8100),
        ('"8100"', "8100"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("fcfs", "fcfs"),
        ("!!str 5", "5"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_value_has_the_type_that_yaml_gives_its_text(text: str, value: object) -> None:
    assert plain(read(f"x: {text}").data) == {"x": value}


@pytest.mark.parametrize("text", ["", "~", "null", "${UNSET:-}", '"${BLANK}"', "${UNSET:- }"])
def test_a_value_that_comes_out_blank_is_unset(text: str) -> None:
    assert read(f"x: {text}", BLANK="").data == {"x": None}


def test_a_value_knows_its_variables() -> None:
    value = read("x: ${HOST}:${PORT:-1}", HOST="::", PORT="2").get("x")
    assert isinstance(value, Scalar)
    assert [variable.name for variable in value.variables] == ["HOST", "PORT"]


def test_an_unset_variable_without_a_default_is_warned_of() -> None:
    report = Report()
    parse("x: ${TYPO}", "memoria.yaml", {}, report)
    (warning,) = report.warnings
    assert warning.what == "the variable TYPO is not set"
    assert warning.where == ("memoria.yaml:1:1  x",)


def test_merge_keys_fill_in_what_the_mapping_does_not_say() -> None:
    data = read("base: &base {a: 1, b: 2}\nx:\n  <<: *base\n  b: 3\ny: {<<: [{a: 5}, *base]}\n").data
    assert plain(data["x"]) == {"a": 1, "b": 3}
    assert plain(data["y"]) == {"a": 5, "b": 2}


def test_parts_to_merge_from_may_stand_at_the_top_as_in_compose() -> None:
    text = "x-common: &common {a: 1, b: '${X}'}\nx-: 5\ny: {<<: *common, x-own: 2}\n"
    assert plain(read(text, X="v").data) == {"y": {"x-own": 2, "a": 1, "b": "v"}}


def test_a_duplicate_key_is_a_problem_that_shows_both_places() -> None:
    text = refusal("a:\n  b: 1\n  b: 2\n")
    assert "memoria.yaml:3:3  a.b" in text
    assert "memoria.yaml:2:3  a.b" in text


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a: 1\nb: [1\n", "memoria.yaml:3:1", ""),
        ("a:\n\tb: 1\n", "memoria.yaml:2:1", "not with tabs"),
        ("t: {idle: ${HTTP_TIMEOUT:-120}}", "memoria.yaml:1:", 'needs quotes: "${NAME}"'),
        ("a: *nowhere", "memoria.yaml:1:4", ""),
        ("a: 1\n---\nb: 1\n", "memoria.yaml:2:1", ""),
        ("a: \x07", "memoria.yaml", ""),
        ("- a\n- b\n", "memoria.yaml:1:1", "smallest one"),
        ("just text", "memoria.yaml:1:1", "smallest one"),
        ("a: !!python/object:os.system {}", "memoria.yaml:1:4", ""),
        ("a: !vault x", "memoria.yaml:1:4", ""),
        ("? [a, b]\n: 1\n", "memoria.yaml:1:3", ""),
        ('a: "\\0"', "memoria.yaml:1:1  a", ""),
        ("a: {<<: 5}", "memoria.yaml:1:9", ""),
        ("a: ${B", "memoria.yaml:1:1  a", "$$"),
    ],
)
def test_text_that_is_no_configuration_is_refused_with_its_place(text: str, place: str, hint: str) -> None:
    shown = refusal(text)
    assert place in shown
    assert hint in shown


def test_an_anchor_within_itself_is_refused() -> None:
    assert "contains itself" in refusal("a: &a [*a]")
    assert "contains itself" in refusal("a: &a {<<: *a}")


def test_nesting_without_end_is_refused() -> None:
    assert "levels of nesting" in refusal("a: " + "[" * 60)
    assert "nesting" in refusal("a: " + "[" * 100_000)  # libyaml may be the first to count


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "more than 20000 values" in refusal("\n".join(lines))
