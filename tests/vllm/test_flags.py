"""Forty published serve lines go through the installed vLLM's own parser, as they stand and as memoria passes
them on, and come back equal."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from memoria.vllm.install import read_options
from memoria.vllm.install.facts import VllmInstall
from memoria.vllm.install.find import data_home, find
from memoria.vllm.install.options import with_options
from tests.unit.vllm.serve_lines import LINES, NOT_COMPARED, argv, original, recorded

# Parses lists of arguments with vLLM's parser, the one that options are recorded from.
PARSE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import read_options
lines, left_out = json.loads(sys.stdin.read())
answers = []
for line in lines:
    found = vars(read_options._parser().parse_args(line))
    answers.append({name: repr(value) for name, value in found.items() if name not in left_out})
Path(sys.argv[2]).write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> VllmInstall:
    """With options recorded now, not by an earlier setup."""
    found = find("auto", data_home(os.environ), "cpu")
    return with_options(found, tmp_path_factory.mktemp("home"))


def parsed(install: VllmInstall, lines: list[list[str]], folder: Path) -> list[dict[str, str]]:
    assert install.root is not None
    answer = folder / "parsed.json"
    scripts = str(Path(read_options.__file__).parent)
    subprocess.run(
        [str(install.root / "bin/python"), "-I", "-c", PARSE, scripts, str(answer)],
        input=json.dumps([lines, sorted(NOT_COMPARED)]),
        text=True,
        check=True,
        timeout=300,
    )
    found: list[dict[str, str]] = json.loads(answer.read_text())
    return found


def test_published_serve_lines_come_back_equal_from_vllms_parser(
    install: VllmInstall, tmp_path: Path
) -> None:
    assert install.options is not None
    made = [
        argv(line, install.options, tmp_path, json_as_text=as_text)
        for as_text in (False, True)
        for line in LINES
    ]
    found = parsed(install, [*map(original, LINES), *made], tmp_path)
    wanted, as_mappings, as_text = (
        found[start : start + len(LINES)] for start in range(0, len(found), len(LINES))
    )
    for line, want, *have in zip(LINES, wanted, as_mappings, as_text, strict=True):
        for one in have:
            differing = {name: (want[name], one[name]) for name in want if want[name] != one[name]}
            assert differing == {}, line


def test_the_recorded_options_are_those_that_unit_tests_read(install: VllmInstall) -> None:
    assert install.version is not None
    assert install.options is not None
    assert install.options == recorded(install.version)
