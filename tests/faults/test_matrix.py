"""The matrix itself: no row without a test, and every test it names exists."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS, Row

ROOT = Path(__file__).parents[2]


@cache
def declared_in(file: str) -> dict[str, bool]:
    """The tests of a file, and whether each runs with the whole suite: without the marker `faults`."""
    tree = ast.parse((ROOT / file).read_text())
    marked = any(
        isinstance(node, ast.Assign)
        and "pytestmark" in ast.unparse(node)
        and "mark.faults" in ast.unparse(node)
        for node in tree.body
    )
    return {
        node.name: not marked and not any("mark.faults" in ast.unparse(d) for d in node.decorator_list)
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def test_every_fault_has_its_row() -> None:
    assert [row.number for row in ROWS] == list(range(1, 41))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_row_has_tests_and_they_exist(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in declared_in(file), test


@pytest.mark.parametrize("row", [row for row in ROWS if row.starred], ids=lambda row: str(row.number))
def test_a_starred_row_is_tested_in_every_run(row: Row) -> None:
    assert any(declared_in(file)[name] for file, _, name in (test.partition("::") for test in row.tests))


def test_the_rows_that_matter_most_are_starred() -> None:
    assert [row.number for row in ROWS if row.starred] == [1, 2, 3, 4, 5, 6, 24, 26, 30, 31, 33, 35]
