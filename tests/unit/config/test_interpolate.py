from __future__ import annotations

import pytest

from memoria.config.interpolate import InterpolationError, Variable, interpolate

VARIABLES = {
    name: Variable(name, value, "environment")
    for name, value in {"SET": "value", "BLANK": "", "OTHER": "other", "TRAP": "${SET}"}.items()
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${SET}", "value"),
        ("$SET", "value"),
        ("a-${SET}-b-${OTHER}", "a-value-b-other"),
        ("${UNSET}", ""),
        ("${SET:-default}", "value"),
        ("${BLANK:-default}", "default"),
        ("${UNSET:-default}", "default"),
        ("${BLANK-default}", ""),
        ("${UNSET-default}", "default"),
        ("${UNSET:-}", ""),
        ("${SET:?needed}", "value"),
        ("${BLANK?needed}", ""),
        ("${SET:+replacement}", "replacement"),
        ("${BLANK:+replacement}", ""),
        ("${BLANK+replacement}", "replacement"),
        ("${UNSET+replacement}", ""),
        ("${UNSET:-${OTHER}}", "other"),
        ("${UNSET:-${BLANK:-deep}}", "deep"),
        ('${UNSET:-{"a":{"b":1}}}', '{"a":{"b":1}}'),
        ("$$SET", "$SET"),
        ("$${SET}", "${SET}"),
        ("costs $5", "costs $5"),
        ("ends with $", "ends with $"),
        ("${TRAP}", "${SET}"),
    ],
)
def test_a_form_gives_what_docker_compose_gives(text: str, expected: str) -> None:
    assert interpolate(text, VARIABLES).text == expected


@pytest.mark.parametrize("text", ["${SET", "${}", "${SET/a/b}", "${1}", "${SET:}", "${UNSET:-${SET}"])
def test_a_form_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InterpolationError):
        interpolate(text, VARIABLES)


def test_a_needed_variable_that_is_unset_is_an_error_with_its_message() -> None:
    with pytest.raises(InterpolationError, match="UNSET is not set: give the model a name") as caught:
        interpolate("${UNSET:?give the model a name}", VARIABLES)
    assert caught.value.hint == "set UNSET in the environment or in .env"


def test_endless_nesting_is_refused() -> None:
    with pytest.raises(InterpolationError, match="nested"):
        interpolate("${A:-" * 500 + "}" * 500, {})


def test_the_variables_that_were_used_are_returned() -> None:
    result = interpolate("${SET}:${UNSET:-$OTHER}:${UNSET}", VARIABLES)
    assert [variable.name for variable in result.variables] == ["SET", "OTHER"]
    assert result.unset == ("UNSET",)
