"""The corpus says what it means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import corpus


@given(st.binary())
def test_what_is_written_is_read_again(data: bytes) -> None:
    lines = corpus.written(data)
    assert corpus._ESCAPE.sub(corpus._unescape, lines.replace("\n", "").encode()) == data


@pytest.mark.parametrize("file", [path.stem for path in corpus.FOLDER.iterdir()])
def test_requests_are_there_once_and_in_their_plainest_form(file: str) -> None:
    found = corpus.requests(file)
    assert all(found.values())
    assert len(set(found.values())) == len(found)
