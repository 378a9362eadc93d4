"""How figures and names are written for people."""

from __future__ import annotations

import pytest

from memoria.text import short_time, suggestion


@pytest.mark.parametrize(
    ("word", "hint"),
    [("generatio", "did you mean `generation`?"), ("x", "there are: embedding, generation")],
)
def test_a_misspelt_name_is_met_with_the_nearest_one_or_with_all(word: str, hint: str) -> None:
    assert suggestion(word, ["embedding", "generation"]) == hint


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.005126, "5.13 ms"), (0.05, "50.0 ms"), (0.13149, "131 ms"), (1.566, "1.57 s"), (1234.0, "1234 s")],
)
def test_a_short_time_has_three_digits_and_its_unit(seconds: float, text: str) -> None:
    assert short_time(seconds) == text
