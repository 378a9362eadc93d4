"""Flags of real serve lines come out of memoria.yaml as the parser of each supported vLLM wants them.

Here its recorded options make up the parser; `tests/vllm/test_flags.py` takes the real one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from memoria.config.load import load
from memoria.vllm.flags import find_problems
from tests.unit.vllm.serve_lines import DATA, LINES, NOT_COMPARED, VERSIONS, argv, original, recorded


class _Switch(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, off: list[str]) -> None:
        super().__init__(option_strings, dest, nargs=0)
        self.off = off

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, name: str | None = None) -> None:
        setattr(namespace, self.dest, name not in self.off)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parser(version: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    for option in json.loads((DATA / "options" / f"vllm-{version}.json").read_text())["options"]:
        names, takes = option["names"], option["takes"]
        kind = str if option["kind"] in ("text", "size") else _json
        if takes == "nothing":
            made.add_argument(*names, action=_Switch, off=option["off"])
        elif takes == "each":
            made.add_argument(*names, action="append", type=kind)
        else:
            made.add_argument(*names, nargs={"one": None, "optional": "?", "many": "+"}[takes], type=_json)
    return made


def parsed(version: str, words: list[str]) -> dict[str, Any]:
    """A key within a flag's JSON stays apart, as text with its value."""
    plain, dotted, rest = [], {}, iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name.startswith("--") and "." in name:
            dotted[name] = _json(value if equals else next(rest))
        else:
            plain.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else word)
    found = vars(parser(version).parse_args(plain))
    return {name: value for name, value in found.items() if name not in NOT_COMPARED} | dotted


def test_there_are_forty_lines() -> None:
    assert len(set(LINES)) >= 40


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[11:60])
def test_a_published_line_comes_out_equal(line: str, version: str, tmp_path: Path) -> None:
    wanted = parsed(version, original(line))
    for as_text in (False, True):
        words = argv(line, recorded(version), tmp_path, json_as_text=as_text)
        assert sized(parsed(version, words)) == sized(wanted)


def sized(found: dict[str, Any]) -> dict[str, Any]:
    """memoria reads the sizes that it plans with, and writes them out: `8k` as 8000."""
    sizes = {"32k": 32_000, "8k": 8_000, "25.6k": 25_600, "4G": 4 << 30}
    return {
        name: sizes.get(value, value) if isinstance(value, str) else value for name, value in found.items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_no_published_line_is_found_fault_with(version: str, tmp_path: Path) -> None:
    for line in LINES:
        argv(line, recorded(version), tmp_path)
        config = load(tmp_path / "memoria.yaml", {"HOME": "/home/user"})
        assert find_problems(config, recorded(version)) == ()
