"""Every screen, held against its golden file.

`MEMORIA_UPDATE_GOLDEN=1` writes them anew; look at what changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from memoria.cli.screens.layout import cut, shortened, wrapped
from tests.unit.cli.test_render_check import check_golden
from tests.unit.screens import DRAWN, FIXED, SAID, said

SIZES, PAINTS = (80, 120), ("plain", "color")
# Lines of a log and of an error are as long as they are.
AS_LONG = ("errors", "logs", "logs-of-one", "plan-unfit-problems", "plan-wishes-refused")


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", DRAWN)
def test_a_screen_at_both_widths_with_and_without_colour(name: str) -> None:
    draw = DRAWN[name]
    sections = [
        f"== {width} columns, {paint}\n{draw(width, paint == 'color')}" for width in SIZES for paint in PAINTS
    ]
    check_golden(name, "\n\n".join(sections))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_colour_changes_nothing_but_colour_and_no_line_is_wider_than_the_terminal(
    name: str, width: int
) -> None:
    plain = DRAWN[name](width, False)
    assert re.sub(r"\033\[[\d;]+m", "", DRAWN[name](width, True)) == plain
    assert all(line.isprintable() for line in plain.splitlines())
    if name not in AS_LONG:
        assert max(map(len, plain.splitlines())) <= width


@pytest.mark.parametrize("name", SAID)
def test_what_a_command_says_in_a_pipe(name: str) -> None:
    text = said(name)
    assert "Traceback (most" not in text
    assert "\033" not in text
    check_golden(name, text)


@pytest.mark.parametrize("name", FIXED)
def test_what_is_always_the_same(name: str) -> None:
    check_golden(name, FIXED[name]())


@pytest.mark.parametrize(
    ("line", "width", "shown"),
    [
        ("abcdef", 3, "abc"),
        ("\033[31mabcdef\033[0m", 3, "\033[31mabc\033[0m"),
        ("ab\033[31mcd\033[0mef", 5, "ab\033[31mcd\033[0me"),
        ("abc", 80, "abc"),
    ],
)
def test_a_line_is_cut_at_the_terminals_width_and_its_colour_ends(line: str, width: int, shown: str) -> None:
    assert cut(line, width) == shown


def test_what_is_too_long_is_wrapped_or_ends_with_an_ellipsis() -> None:
    assert wrapped("one two three four five six", 20) == ["one two three four", "  five six"]
    assert wrapped("one two", None) == ["one two"]
    assert wrapped("a" * 30, 20) == ["a" * 20, "  " + "a" * 10]
    assert (shortened("abc", 3), shortened("abcd", 3)) == ("abc", "ab…")
