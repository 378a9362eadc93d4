"""How figures and names are written for people."""

from __future__ import annotations

import pytest

from memoria.text import suggestion


@pytest.mark.parametrize(
    ("word", "hint"),
    [("generatio", "did you mean `generation`?"), ("x", "there are: embedding, generation")],
)
def test_a_misspelt_name_is_met_with_the_nearest_one_or_with_all(word: str, hint: str) -> None:
    assert suggestion(word, ["embedding", "generation"]) == hint
