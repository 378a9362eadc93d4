"""How figures and names are written for people."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import pytest

from memoria.text import fraction_text, short_time, suggestion


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


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        ("0.3", "0.30"),
        ("1", "1.00"),
        ("0.125", "0.125"),
        ("0.9500001", "0.9500001"),
        ("0.00000001", "0.00000001"),
        ("0.08583690987124464", "0.0858"),
    ],
)
def test_a_fraction_is_shown_as_it_was_written_and_a_computed_one_short(fraction: str, text: str) -> None:
    assert fraction_text(Decimal(fraction)) == text


def test_a_computed_sum_over_a_limit_never_looks_like_the_limit() -> None:
    assert fraction_text(Decimal("0.9500000123456"), ROUND_CEILING) == "0.9501"
