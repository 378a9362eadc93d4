"""The table of failures as a whole: each of its rows is reached by a text that vLLM really writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memoria.vllm.failures import FAILURES, Failure
from tests.unit.vllm import test_diagnosis as examples

LOGS = Path(__file__).parents[2] / "data" / "logs"


def _texts() -> list[str]:
    """The whole logs, and every message of the diagnosis' tests."""
    messages = [
        str(argument)
        for test in vars(examples).values()
        for mark in getattr(test, "pytestmark", ())
        for arguments in (mark.args[1] if mark.name == "parametrize" else ())
        for argument in (arguments if isinstance(arguments, tuple) else (arguments,))
    ]
    return [*messages, *(path.read_text() for path in sorted(LOGS.glob("*.log")))]


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: row.cause[:40])
def test_every_row_has_an_example(row: Failure) -> None:
    assert any(row.pattern.search(text) for text in _texts())


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: row.cause[:40])
def test_a_row_uses_only_what_it_captures(row: Failure) -> None:
    """A template that names a group that is not there would fail when it is needed most."""
    templates = [row.cause, *([row.hint] if isinstance(row.hint, str) else [])]
    used = {int(number) for text in templates for number in re.findall(r"(?<!\{)\{(\d)\}", text)}
    assert all(number <= row.pattern.groups for number in used)


def test_every_row_can_be_reached_before_the_rows_above_it_take_its_texts() -> None:
    first = {text: next((row for row in FAILURES if row.pattern.search(text)), None) for text in _texts()}
    reached = {id(row) for row in first.values() if row is not None}
    hidden = [row.cause for row in FAILURES if id(row) not in reached]
    assert hidden == []
