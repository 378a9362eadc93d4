"""A program that pip does not bring may be missing, but not in CI."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[2]
CI = ROOT / ".ci" / "run"


@pytest.mark.parametrize("program", programs.DEBIAN)
def test_a_test_without_its_program_is_skipped_and_says_how_to_get_it(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SERVERS", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=f": {program} .Debian: apt-get install [a-z]"):
        programs.need(program)


def test_ci_installs_every_program_and_accepts_no_such_skip() -> None:
    script = CI.read_text(encoding="utf-8")
    packages = {package for names in programs.DEBIAN.values() for package in names.split()}
    assert packages <= set(re.findall(r"[\w-]+", script))
    assert f"'^SKIPPED.*: {programs.MISSING}: '" in script


def _unguarded(path: Path) -> Iterator[str]:
    """Commands that begin with such a program's name, and searches for one, not through `tests.programs`."""
    text = path.read_text(encoding="utf-8")
    if not any(f'"{program}"' in text for program in programs.DEBIAN):
        return
    for node in ast.walk(ast.parse(text)):
        first: ast.expr | None = None
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            first = node.elts[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("which") and node.args:
            first = node.args[0]
        if isinstance(first, ast.Constant) and first.value in programs.DEBIAN:
            yield f"{path.relative_to(ROOT)}:{first.lineno} {first.value}"


def test_every_test_gets_such_a_program_in_the_same_way() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert [found for path in tests for found in _unguarded(path)] == []
